"""The pieces of work of held_out.py: meta-trainings, runs, and the clock, each finished once its file exists."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments.held_out.bench import Bench
from experiments.held_out.clock import clock
from experiments.held_out.entries import entries
from experiments.held_out.rules import FINISHED, KINDS, folder_of, trained


@dataclass(frozen=True)
class Job:
    """One piece of work, finished once ``path`` exists. Of a family's measurements what is learned comes ``first``."""

    label: str
    path: Path
    work: Callable[[], object]
    first: bool = False


def training_jobs(out: Path, family: str, seeds: int, smoke: bool) -> Iterator[Job]:
    """The meta-trainings of one family."""
    for seed in range(seeds):
        for kind in KINDS:
            path = folder_of(out, family, kind, seed) / FINISHED
            work = partial(trained, out, family, kind, seed, smoke)
            yield Job(f"{family}: meta-training, {kind}, seed {seed}", path, work)


def measuring_jobs(out: Path, bench: Bench, seeds: int) -> Iterator[Job]:
    """All runs on one member."""
    for entry in entries(out, bench, seeds):
        yield Job(f"{bench.label}: {entry.name}{entry.version}", entry.path, entry.measure, entry.name == KINDS[0])


def clock_jobs(out: Path, bench: Bench) -> Iterator[Job]:
    """The clock of one member, where all methods run."""
    if bench.member.methods == "all":
        yield Job(f"{bench.label}: clock", bench.clock, partial(clock, out, bench))
