"""Meta-trainings in run folders, each done as far as it has not been before."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments.lab.progress import Stopped, say
from meta_teleport.cli.terminal import stopping, training_bar
from meta_teleport.learned.serialization import build, load, takes_shapes
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.loop import Progress, train
from meta_teleport.registry import resolve
from meta_teleport.rules.rule import Rule, shapes_of
from meta_teleport.runs.run import Run, read_json, write_json
from meta_teleport.tasks.family import TaskFamily

FINISHED, SPENT = "finished.json", "spent.json"
"""What the meta-training in a folder took, once it is finished, and until it was stopped."""
LINES = 4
"""Said of a meta-training where there is no terminal for a bar."""


def is_finished(folder: Path, training: TrainingConfig) -> bool:
    """Whether the rule in a run folder has had all its meta-steps."""
    path = folder / FINISHED
    return path.exists() and bool(read_json(path)["meta_steps"] == training.meta_steps)


def trained(
    folder: Path,
    label: str,
    spec: dict[str, Any],
    task: dict[str, Any],
    family: TaskFamily,
    training: TrainingConfig,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> Rule:
    """The rule of the class and arguments in ``spec``, meta-trained on ``family``, which the folder calls ``task``.

    Seconds, those of the processor and failed tasks are in the file ``FINISHED`` of the folder. Raises ``Stopped`` on
    Ctrl-C, and ``UserError`` for a folder of another rule or family.
    """
    if is_finished(folder, training):
        return load(folder)
    config: dict[str, Any] = {"task": task, "rule": spec, "training": asdict(training), "seed": seed}
    config["dtype"] = str(dtype).removeprefix("torch.")
    resume, clock = (folder / "config.json").exists(), folder / SPENT
    run = Run.open(folder, lock=True) if resume else Run.create(folder, config)
    spent = read_json(clock) if clock.exists() else {"seconds": 0.0, "cpu_seconds": 0.0}
    began = time.process_time()
    rule = _built(spec, family, seed)
    with stopping() as stop, training_bar(training.meta_steps) as bar:
        done = train(
            rule,
            family,
            training,
            seed=seed,
            dtype=dtype,
            run=run,
            resume=resume,
            report=_report(label, bar),
            should_stop=stop,
        )
    seconds, busy = spent["seconds"] + done.seconds, spent["cpu_seconds"] + time.process_time() - began
    told = {"meta_steps": done.meta_step, "seconds": seconds, "cpu_seconds": busy, "failed": done.failed}
    write_json(folder / FINISHED if done.finished else clock, told)
    if not done.finished:
        raise Stopped(f"{label}: stopped after meta-step {done.meta_step}; the same command goes on from there")
    return load(folder)


def _built(spec: dict[str, Any], family: TaskFamily, seed: int) -> Rule:
    """The rule before its training; one that depends on a network's shapes for those of ``family``."""
    shapes = None
    if takes_shapes(resolve(spec["class_path"], Rule)):
        tasks = family.sample(1, torch.Generator().manual_seed(0))
        shapes = shapes_of(tasks.params, tasks.symmetry)
    return build(spec, shapes, seed)


def _report(label: str, bar: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    """Feeds the bar, and where there is none says how far it is now and then."""

    def report(now: Progress) -> None:
        if bar is not None:
            bar(now)
        elif now.meta_step % max(1, now.meta_steps // LINES) == 0:
            say(f"{label}: {now.meta_step} of {now.meta_steps}, {now.meta_loss:.3g}")

    return report
