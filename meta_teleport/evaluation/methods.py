"""What an evaluation compares: named methods.

A method is a rule and, for teleport-augmented optimizers and closed-form controls, interventions: moves of the
parameters between two steps of the rule, whose state is kept through them. Names are kebab-case; settings are what a
reader needs to run the method again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from meta_teleport.errors import UserError, nearest
from meta_teleport.params import Params, per_task
from meta_teleport.rules.classical import Adam, GradientDescent, Momentum
from meta_teleport.rules.lbfgs import LBFGS
from meta_teleport.rules.rule import Rule
from meta_teleport.symmetry.random_algebra import random_algebra
from meta_teleport.tasks.family import Tasks
from meta_teleport.teleportation.ascent import Ascent, ascend

Kind = Literal["learned", "control", "teleport-baseline", "baseline"]
Move = Callable[[Tasks, Params, Tensor], Params]
Settings = dict[str, Any]

ASCENT_STEPS = 10


def decades(low: float, high: float, per_decade: int = 4) -> list[float]:
    """``10^low, ..., 10^high`` with ``per_decade`` values in every decade."""
    return [10 ** (low + i / per_decade) for i in range(round((high - low) * per_decade) + 1)]


@dataclass(frozen=True)
class Baseline:
    """A plain optimizer: a row of every evaluation.

    ``make`` takes the settings that ``grids`` name; tuning looks for the best of all their combinations, in multiples
    of the step size found for the earlier row ``times`` if one is named. ``teleports`` gives it two more rows, with
    teleports by ascent and with random ones; its only setting is then ``lr``.
    """

    make: Callable[..., Rule]
    grids: dict[str, list[float]] = field(default_factory=dict)
    times: str | None = None
    teleports: bool = False


BASELINES = {
    "gd": Baseline(GradientDescent, {"lr": decades(-6, 1)}, teleports=True),
    "gd-warmup": Baseline(
        partial(GradientDescent, warmup=1), {"warmup_lr": decades(-1.5, 0.5), "lr": decades(-0.5, 2)}, times="gd"
    ),
    "momentum": Baseline(Momentum, {"lr": decades(-7, 0)}, teleports=True),
    "adam": Baseline(Adam, {"lr": decades(-4, 1)}, teleports=True),
    "lbfgs": Baseline(LBFGS),
}
TELEPORT_BASELINES = tuple(
    f"{name}+{how}" for how in ("ascent", "random") for name, entry in BASELINES.items() if entry.teleports
)


@dataclass(frozen=True)
class Interventions:
    """Moves between steps: before each step in ``at`` the parameters become ``move(tasks, params, step)``.

    ``teleports`` says that the moves are meant to leave the loss alone, so that their drift is measured.
    """

    at: tuple[int, ...]
    move: Move
    teleports: bool = True


@dataclass(frozen=True)
class Method:
    """One row of a comparison."""

    name: str
    kind: Kind
    rule: Rule
    settings: Settings = field(default_factory=dict)
    interventions: Interventions | None = None


def baseline(name: str, settings: Mapping[str, Any], generator: torch.Generator) -> Method:
    """A plain or teleport-augmented optimizer by its name and tuned settings.

    ``settings`` are numbers, or tensors ``(tasks,)`` where a grid of them runs as one batch: those of its entry in
    ``BASELINES``; ``at`` (the steps that a teleport precedes) and ``size`` (first step size of the
    ascent) or ``sizes`` (norm of the random element at each step in ``at``). ``generator`` draws random elements.

    Raises ``UserError`` for a name that is none of these.
    """
    teleported = [key for key, entry in BASELINES.items() if entry.teleports]
    names = [*BASELINES, *(f"{key}+{how}" for how in ("ascent", "random") for key in teleported)]
    if name not in names:
        raise UserError(f"there is no baseline '{name}'{nearest(name, names)}: choose one of {', '.join(names)}")
    optimizer, _, how = name.partition("+")
    entry = BASELINES[optimizer]
    rule = entry.make(**{setting: settings[setting] for setting in entry.grids})
    if not how:
        method = Method(name, "baseline", rule, dict(settings))
        return replace(method, settings={**settings, "reported": "lowest loss so far"}) if rule.monotone else method
    at = tuple(settings["at"])
    move = ascent(settings["size"]) if how == "ascent" else random_move(at, settings["sizes"], generator)
    return Method(name, "teleport-baseline", rule, dict(settings), Interventions(at, move))


def ascent(size: float | Tensor, report: Callable[[Ascent], None] | None = None) -> Move:
    """The move that raises the gradient norm along the orbit: ten steps of ascent, the first of norm ``size``.

    ``report`` is shown what each search found.
    """

    def move(tasks: Tasks, params: Params, step: Tensor) -> Params:
        found = ascend(
            tasks.orbit,
            params,
            tasks.inputs(step),
            lambda at: tasks.loss(at, step),
            steps=ASCENT_STEPS,
            size=size,
        )
        if report is not None:
            report(found)
        return found.params

    return move


def random_move(at: Sequence[int], sizes: Sequence[float], generator: torch.Generator) -> Move:
    """The move by random elements; before step ``at[i]`` their norm over all sites is ``sizes[i]``."""

    def move(tasks: Tasks, params: Params, step: Tensor) -> Params:
        symmetry, inputs = tasks.orbit, tasks.inputs(step)
        size = sizes[at.index(int(step[0]))]
        like = next(iter(params.values()))
        groups = [site.group for site in symmetry.sites]
        ones = tuple(like.new_ones(tasks.count, *group.algebra_shape) for group in groups)
        drawn = [g.tangent(t) for g, t in zip(groups, random_algebra(ones, generator), strict=True)]
        norm = torch.stack([t.square().flatten(1).sum(1) for t in drawn]).sum(0).sqrt()
        return symmetry.flow(params, [size * t / per_task(norm, t) for t in drawn], inputs)

    return move
