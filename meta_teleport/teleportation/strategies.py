"""The ways to choose where on the orbit to go: by search, by formula, by chance."""

from functools import partial
from math import inf
from typing import get_args

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError, nearest
from meta_teleport.params import Params
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.acceptance import element_fault
from meta_teleport.teleportation.ascent import Direction, ascend, identities
from meta_teleport.teleportation.conditions import require_finite
from meta_teleport.teleportation.curvature import unit_algebra
from meta_teleport.teleportation.gauges import GAUGES, Gauge
from meta_teleport.teleportation.gradient_axes import GradientAxes
from meta_teleport.teleportation.objectives import NAMES, Loss, Objective, gradient_norm, named
from meta_teleport.teleportation.proposer import Found, Proposer, ProposesElements, Strategy

PROPOSERS = {"gradient_axes": GradientAxes()}
CHOICES = (*NAMES, *GAUGES, *PROPOSERS, "random")


Choice = str | Objective | Gauge | Proposer


def as_choice(objective: "Choice | ProposesElements", model: nn.Module, symmetry: Symmetry) -> Choice:
    """What has a proposer gives it; everything else is as it was."""
    objective = PROPOSERS.get(objective, objective) if isinstance(objective, str) else objective
    if isinstance(objective, ProposesElements) and not isinstance(objective, type):
        return objective.proposer(model, symmetry)
    return objective


def is_gauge(choice: Choice) -> bool:
    """Whether the place that is chosen does not depend on where on the orbit one is, so that teleports do not pile
    up."""
    if isinstance(choice, Proposer):
        return not choice.piles_up
    return isinstance(choice, Gauge) or (isinstance(choice, str) and choice in GAUGES)


def has_length(choice: Choice) -> bool:
    """Whether ``size`` says how far it goes: searches and random elements."""
    return not is_gauge(choice) and not isinstance(choice, Proposer)


def as_strategy(
    objective: Choice,
    direction: Direction,
    steps: int,
    size: float,
    generator: torch.Generator | None,
) -> Strategy:
    """The strategy for an objective, as ``teleport`` takes it. Raises ``UserError`` for settings that make none."""
    if isinstance(objective, Proposer):
        return objective.propose
    known = objective in CHOICES if isinstance(objective, str) else isinstance(objective, Gauge) or callable(objective)
    if not known or isinstance(objective, type):
        near = nearest(objective, CHOICES) if isinstance(objective, str) else ""
        shown = f"the class {objective.__name__}" if isinstance(objective, type) else repr(objective)
        raise UserError(f"unknown objective {shown}{near}: choose one of {', '.join(CHOICES)}, or give a function")
    if direction not in get_args(Direction):
        raise UserError(f"unknown direction '{direction}': choose one of {', '.join(get_args(Direction))}")
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps={steps!r}: give a whole number, at least 1")
    if not isinstance(size, int | float) or not 0 < size < inf:
        raise UserError(f"size={size!r}: give a positive number")
    if objective == "random":
        if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
            raise UserError(
                "objective 'random' draws elements: pass generator=torch.Generator().manual_seed(0), on the CPU"
            )
        return partial(draw, size=size, generator=generator)
    if isinstance(objective, str):
        objective = GAUGES.get(objective, objective)
    if isinstance(objective, Gauge):
        return partial(fix, gauge=objective, sweeps=steps)
    return partial(follow, objective=objective, direction=direction, steps=steps, size=size, generator=generator)


def follow(
    symmetry: Symmetry,
    params: Params,
    loss: Loss,
    *,
    objective: str | Objective,
    direction: Direction,
    steps: int,
    size: float,
    generator: torch.Generator | None,
) -> Found:
    """The end of a search that raises or lowers the objective."""
    function = named(objective, symmetry, None, generator) if isinstance(objective, str) else objective
    checked = function if function is gradient_norm else _checked(function)
    end = ascend(symmetry, params, None, loss, objective=checked, direction=direction, steps=steps, size=size)
    require_finite("objective", end.before)
    fault = "" if float(end.length) > 0 else f"no step of the search could {direction} the objective"
    return Found(end.params, end.elements, float(end.before), float(end.after), fault)


def fix(symmetry: Symmetry, params: Params, loss: Loss, *, gauge: Gauge, sweeps: int) -> Found:
    """The gauge at every site, bottom to top.

    Where sites share parameters one can undo what was reached at another: then all are swept again, ``sweeps`` times at
    most, until nothing moves.
    """
    names = [view.name for site in symmetry.sites for view in site.producers + site.consumers]
    shared = len(set(names)) < len(names)
    total = list(identities(symmetry, params))
    for _ in range(sweeps if shared else 1):
        distance = 0.0
        for i, (site, identity) in enumerate(zip(symmetry.sites, identities(symmetry, params), strict=True)):
            g = gauge.element(site, params)
            fault = element_fault(site, g)
            if bool(g.isnan().any()):
                why = "its weights have no full rank (one of the factors may still be zero)"
                fault = f"gauge '{gauge.name}' has no element at site '{site.name}': {why}"
            if fault:
                return Found(params, total, fault=fault)
            params, total[i] = site.act(params, g), site.group.compose(g, total[i])
            distance = max(distance, float((g - identity).abs().max()))
        if distance**2 < torch.finfo(total[0].dtype).eps:
            break
    return Found(params, total)


def draw(symmetry: Symmetry, params: Params, loss: Loss, *, size: float, generator: torch.Generator) -> Found:
    """A random element."""
    algebra = [size * t for t in unit_algebra(symmetry, None, next(iter(params.values())), generator)]
    pairs = symmetry.exp_pairs(algebra)
    return Found(symmetry.move(params, pairs), tuple(g for g, _ in pairs))


def _checked(objective: Objective) -> Objective:
    """An objective of the user's own, which must give one number that has a gradient."""

    def evaluate(loss: Loss, params: Params) -> Tensor:
        value = objective(loss, params)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shown = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"the objective gave {shown}, not one number: return a tensor of shape (1,)")
        if not value.requires_grad:
            raise UserError(
                "the objective cannot be differentiated by the parameters: compute it from them by torch operations, "
                "without .detach() or .item()"
            )
        return value.reshape(1)

    return evaluate
