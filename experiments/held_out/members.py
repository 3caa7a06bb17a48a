"""Families of held_out.py and their members: what is measured, on how many tasks, for how long."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from meta_teleport.tasks.family import TaskFamily

Amount = Literal["all", "rules"]


@dataclass(frozen=True)
class Member:
    """Held-out tasks of one size. ``make`` gives their family; ``seen`` says that the rule was trained on this size.

    With ``methods`` "all" every method runs, for ``multiples`` of the horizon; with "rules" the rule and the controls
    in closed form.
    """

    name: str
    make: Callable[[], TaskFamily]
    count: int
    seen: bool = False
    methods: Amount = "rules"
    multiples: tuple[int, ...] = (1, 3)
    dtype: torch.dtype = torch.float64


@dataclass(frozen=True)
class Setting:
    """One family: ``training`` are the members of the mixture that the rules are meta-trained on, ``horizon`` the steps
    of a run; rules that were trained for fewer are stretched to them.

    ``stochastic``: batches are a part of the data, so that step sizes fall linearly to zero and the error of the tasks
    is measured, ``measured`` times up to the horizon; else the loss, at every step.
    ``backtracking``: rules and their twins run with it, although they were trained without.
    """

    title: str
    training: tuple[Callable[[], TaskFamily], ...]
    members: tuple[Member, ...]
    horizon: int
    stochastic: bool = False
    backtracking: bool = False
    measured: int = 20
    dtype: torch.dtype = torch.float64


def single(member: Member) -> Member:
    """The same in float32."""
    name = f"{member.name}, float32"
    return replace(member, name=name, dtype=torch.float32, methods="rules", multiples=(1,))


def count_for(width: int) -> int:
    """256 tasks up to width 40, 64 up to 128, 16 beyond."""
    return 256 if width <= 40 else 64 if width <= 128 else 16
