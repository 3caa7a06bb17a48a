"""What is finished of an experiment is kept in files, so that the same command goes on after a stop."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from meta_teleport.cli.terminal import counting_bar, stopping
from meta_teleport.errors import UserError
from meta_teleport.runs.checkpoint import load_tensors
from meta_teleport.runs.run import read_json, write_json


class Stopped(Exception):
    """The run was asked to stop; what was finished is saved, and the same command goes on from there."""


@dataclass(frozen=True)
class Job:
    """One piece of work, finished once ``path`` exists."""

    label: str
    path: Path
    work: Callable[[], object]


def work_through(jobs: Sequence[Job]) -> None:
    """One job after the other, with the time left. Raises ``Stopped`` on Ctrl-C, after the job under way."""
    open_jobs = [job for job in jobs if not job.path.exists()]
    began, done = perf_counter(), len(jobs) - len(open_jobs)
    with stopping() as stop, counting_bar(len(jobs), done) as show:
        for number, job in enumerate(open_jobs):
            if stop():
                raise Stopped(f"stopped before {job.label}; the same command goes on from there")
            show(done + number, job.label)
            started = perf_counter()
            job.work()
            spent, count = perf_counter() - started, len(open_jobs) - number - 1
            left = (perf_counter() - began) / (number + 1) * count
            say(f"{job.label}: {spent:.1f} s, about {left / 60:.0f} min left of {count} jobs")


def collect(parts: Mapping[str, Callable[[], dict[str, Any]]], folder: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """What each part gives, by its name; a finished one is kept in ``folder`` and not worked out again.

    Raises ``Stopped`` on Ctrl-C, and ``UserError`` where a file there is of another ``key``.
    """
    work = {name: partial(kept, folder / f"{slug(name)}.json", part, key) for name, part in parts.items()}
    jobs = [Job(name, folder / f"{slug(name)}.json", call) for name, call in work.items()]
    for job in jobs:
        if job.path.exists():
            job.work()
    work_through(jobs)
    return {name: call() for name, call in work.items()}


def kept(path: Path, make: Callable[[], dict[str, Any]], key: Mapping[str, Any]) -> dict[str, Any]:
    """What ``make`` gives: now, or from the JSON file in which it was kept.

    Raises ``UserError`` where the file is of another ``key``.
    """
    if not path.exists():
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": dict(key), "found": found})
    content = read_json(path)
    if "found" not in content:
        raise UserError(f"{path} is of another version: delete it, or choose another --out")
    require_same(path, content.get("key", {}), key)
    return dict(content["found"])


def kept_tensors(
    path: Path, key: Mapping[str, Any], device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors of a file of progress and what is written beside them, ``key`` among it; None without a file.

    Raises ``UserError`` where the file is of another ``key``.
    """
    if not path.exists():
        return None
    tensors, meta = load_tensors(path, device)
    require_same(path, meta, key)
    return tensors, meta


def require_same(path: Path, found: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    """Raises ``UserError`` naming what a file of progress has ``found`` other than the run that takes it up."""
    other = [name for name, value in key.items() if found.get(name) != value]
    if other:
        raise UserError(f"{path} belongs to a run with other {', '.join(other)}: delete it, or choose another --out")


def slug(name: str) -> str:
    """A name as a part of a path."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def say(text: str) -> None:
    """One line about a finished part, on standard error."""
    print(text, file=sys.stderr, flush=True)
