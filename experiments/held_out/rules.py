"""The rules that held_out.py meta-trains: per family one setting, three kinds of rule, as many meta-seeds as wanted.

rule               the equivariant rule
no teleport        the same without elements, trained in the same way
random teleport    the same with random elements of learned size, trained in the same way
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from experiments.held_out.families import FAMILIES
from experiments.held_out.recipes import RECIPES
from experiments.lab.meta_training import trained
from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.registry import class_path
from meta_teleport.rules.rule import Rule
from meta_teleport.rules.wrappers import RandomElements
from meta_teleport.tasks.family import TaskFamily
from meta_teleport.tasks.mixture import Mixture

KINDS = ("rule", "no teleport", "random teleport")
FIRST_SIZE = 0.1
SHARED = {"f1": "f2"}
"""Families whose rules are those of another one."""


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


def trained_rule(out: Path, family: str, kind: str, seed: int, smoke: bool) -> Rule:
    """One rule, meta-trained as far as it has not been before. Raises ``Stopped`` on Ctrl-C."""
    family = SHARED.get(family, family)
    return trained(
        folder_of(out, family, kind, seed),
        f"{family}, {kind}, seed {seed}",
        spec_of(family, kind, seed),
        {"class_path": family},
        mixture(family, smoke),
        training_of(family, smoke),
        seed,
        FAMILIES[family].dtype,
    )


@cache
def mixture(family: str, smoke: bool) -> TaskFamily:
    """What the rules of a family are trained on, with --smoke the first alone. Made once: some are pre-trained, or
    downloaded."""
    return Mixture([make() for make in FAMILIES[family].training[: 1 if smoke else None]])
