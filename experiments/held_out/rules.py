"""The rules that held_out.py meta-trains: per family one setting, three kinds of rule, as many meta-seeds as wanted.

rule               the equivariant rule
no teleport        the same without elements, trained in the same way
random teleport    the same with random elements of learned size, trained in the same way
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from experiments.held_out.families import FAMILIES
from experiments.held_out.recipes import RECIPES
from meta_teleport.cli.terminal import stopping, training_bar
from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.learned.serialization import build, load
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.loop import Progress, train
from meta_teleport.registry import class_path
from meta_teleport.rules.rule import Rule
from meta_teleport.rules.wrappers import RandomElements
from meta_teleport.runs.run import Run, read_json, write_json
from meta_teleport.tasks.family import TaskFamily
from meta_teleport.tasks.mixture import Mixture

KINDS = ("rule", "no teleport", "random teleport")
FIRST_SIZE = 0.1
FINISHED = "finished.json"
SHARED = {"f1": "f2"}
"""Families whose rules are those of another one."""


class Stopped(Exception):
    """Meta-training was asked to stop; the same command goes on from there."""


class RandomTeleports(RandomElements):
    """The equivariant rule of these ``arguments`` with random elements, drawn from ``seed``, in place of its own; only
    their sizes are learned. They start above zero, where the gradient of a size vanishes."""

    def __init__(self, arguments: dict[str, Any], seed: int = 0) -> None:
        rule = Equivariant(**arguments)
        torch.nn.init.constant_(rule.element_head.bias, FIRST_SIZE)
        super().__init__(rule, torch.Generator().manual_seed(seed))


def spec_of(family: str, kind: str, seed: int) -> dict[str, Any]:
    """The class and arguments of one rule."""
    arguments = RECIPES[family].arguments
    if kind == "random teleport":
        return {
            "class_path": class_path(RandomTeleports),
            "init_args": {"arguments": arguments, "seed": seed},
        }
    bases: dict[str, Any] = {"bases": [], "init_coefficients": {}} if kind == "no teleport" else {}
    return {"class_path": class_path(Equivariant), "init_args": {**arguments, **bases}}


def folder_of(out: Path, family: str, kind: str, seed: int) -> Path:
    """The run folder of one meta-training."""
    return out / "rules" / SHARED.get(family, family) / kind.replace(" ", "-") / f"seed{seed}"


def training_of(family: str, smoke: bool) -> TrainingConfig:
    """How the rules of a family are meta-trained."""
    training = RECIPES[family].training
    return replace(training, meta_steps=6, tasks=2, save_every=3) if smoke else training


def trained(out: Path, family: str, kind: str, seed: int, smoke: bool) -> tuple[Rule, float]:
    """One rule, meta-trained as far as it has not been before, and the seconds that took.

    Raises ``Stopped`` on Ctrl-C.
    """
    family = SHARED.get(family, family)
    folder, training = folder_of(out, family, kind, seed), training_of(family, smoke)
    if (folder / FINISHED).exists():
        return load(folder), float(read_json(folder / FINISHED)["seconds"])
    setting, resume, clock = FAMILIES[family], (folder / "training.safetensors").exists(), folder / "spent.json"
    spent = read_json(clock) if resume and clock.exists() else {"seconds": 0.0, "cpu_seconds": 0.0}
    began = time.process_time()
    rule = build(spec_of(family, kind, seed), None, seed)
    config: dict[str, Any] = {
        "task": {"class_path": family},
        "rule": spec_of(family, kind, seed),
        "training": asdict(training),
    }
    config |= {"seed": seed, "dtype": str(setting.dtype).removeprefix("torch.")}
    run = Run.open(folder) if (folder / "config.json").exists() else Run.create(folder, config)
    with stopping() as stop, training_bar(training.meta_steps) as bar:
        done = train(
            rule,
            mixture(family, smoke),
            training,
            seed=seed,
            dtype=setting.dtype,
            run=run,
            resume=resume,
            report=_report(f"{family}, {kind}, seed {seed}", bar),
            should_stop=stop,
        )
    run.close()
    seconds, busy = spent["seconds"] + done.seconds, spent["cpu_seconds"] + time.process_time() - began
    report: dict[str, Any] = {
        "meta_steps": done.meta_step,
        "seconds": seconds,
        "cpu_seconds": busy,
        "failed": done.failed,
    }
    write_json(folder / FINISHED if done.finished else clock, report)
    if not done.finished:
        raise Stopped(f"stopped in the meta-training of {family}, {kind}, seed {seed}: the same command goes on")
    return load(folder), seconds


@cache
def mixture(family: str, smoke: bool) -> TaskFamily:
    """What the rules of a family are trained on, with --smoke the first alone. Made once: some are pre-trained, or
    downloaded."""
    return Mixture([make() for make in FAMILIES[family].training[: 1 if smoke else None]])


def _report(label: str, bar: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    """Feeds the bar, and where there is none prints ten lines."""

    def report(now: Progress) -> None:
        if bar is not None:
            bar(now)
        elif now.meta_step % max(1, now.meta_steps // 4) == 0:
            print(f"{label}: {now.meta_step} of {now.meta_steps}, {now.meta_loss:.3g}", file=sys.stderr, flush=True)

    return report
