"""Teleporting a model of one's own: the search for a better place on its orbit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.params import Params, per_task
from meta_teleport.symmetry.groups import Group, Orthogonal
from meta_teleport.symmetry.requirements import require_movable
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.ascent import Direction, ascend
from meta_teleport.teleportation.binding import ModelLoss, bind
from meta_teleport.teleportation.drift import LIMIT, loss_drift
from meta_teleport.teleportation.objectives import Loss, Objective, named


@dataclass(frozen=True)
class Teleport:
    """What a teleport found.

    ``params``: the moved parameters by name, in the model's shapes; ``elements``: one per site of
    ``symmetry.continuous``, ``(*blocks, k, k)`` or ``(*blocks, k)``, which move the model's parameters to ``params``;
    ``before`` and ``after``: the objective (nan for random elements and gauges); ``drift``: |L(g.w) - L(w)| /
    max(|L(w)|, 1), nan where no loss was given; ``seconds``: wall-clock time. A teleport that was not ``accepted``, for
    the ``reason`` given, holds the parameters as they were and identities.
    """

    params: dict[str, Tensor]
    elements: tuple[Tensor, ...]
    before: float
    after: float
    drift: float
    seconds: float
    accepted: bool = True
    reason: str = ""

    def write(self, model: nn.Module) -> None:
        """Copies the parameters into the model, in place."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.params:
                    parameter.copy_(self.params[name])


def teleport(
    model: nn.Module,
    symmetry: Symmetry,
    objective: str | Objective = "gradient_norm",
    *,
    loss: ModelLoss | None = None,
    batch: Any = None,
    direction: Direction = "raise",
    steps: int = 10,
    size: float = 0.1,
    generator: torch.Generator | None = None,
    tolerance: float = LIMIT,
) -> Teleport:
    """Searches the orbit of the model's parameters for a better place; the model itself is left as it is."""
    started = perf_counter()
    require_movable(model)
    if direction not in get_args(Direction):
        raise UserError(f"unknown direction '{direction}': choose one of {', '.join(get_args(Direction))}")
    params = {n: p.detach().clone().unsqueeze(0) for n, p in model.named_parameters() if p.requires_grad}
    movable = symmetry.continuous
    bound = None if loss is None else bind(model, loss, batch)
    before = after = drift = float("nan")
    if objective == "random":
        moved, elements = _random(movable, params, size, cast(torch.Generator, generator))
    else:
        search = named(objective, movable, None, generator) if isinstance(objective, str) else objective
        found = ascend(
            movable, params, None, cast(Loss, bound), objective=search, direction=direction, steps=steps, size=size
        )
        moved, elements, before, after = found.params, found.elements, float(found.before), float(found.after)
    if bound is not None:
        with torch.no_grad():
            drift = float(loss_drift(bound(params), bound(moved)))
    result = Teleport(_single(moved), tuple(g[0] for g in elements), before, after, drift, perf_counter() - started)
    if drift > tolerance:
        identities = tuple(
            site.group.identity(dtype=g.dtype, device=g.device) for site, g in zip(movable.sites, elements)
        )
        reason = f"the loss moved by {drift:.1e}, above the tolerance of {tolerance:.1e}"
        return replace(result, params=_single(params), elements=identities, accepted=False, reason=reason)
    return result


def _single(params: Params) -> dict[str, Tensor]:
    return {name: p[0] for name, p in params.items()}


def _random(
    symmetry: Symmetry, params: Params, size: float, generator: torch.Generator
) -> tuple[Params, tuple[Tensor, ...]]:
    like = next(iter(params.values()))
    elements = symmetry.exp([size * t for t in random_direction(symmetry, like, generator)])
    return symmetry.act(params, elements), elements


def random_direction(symmetry: Symmetry, like: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Algebra coordinates of Frobenius norm 1 over all sites, one direction for each task of ``like`` (tasks, ...)."""
    groups = [site.group for site in symmetry.sites]
    ones = tuple(like.new_ones(len(like), *group.algebra_shape) for group in groups)
    drawn = [tangent(g, t) for g, t in zip(groups, random_algebra(ones, generator), strict=True)]
    norm = torch.stack([t.square().flatten(1).sum(1) for t in drawn]).sum(0).sqrt()
    return tuple(t / per_task(norm, t) for t in drawn)


def tangent(group: Group, algebra: Tensor) -> Tensor:
    """The part of the algebra coordinates that moves anything: their skew part for rotations, all of them else."""
    return (algebra - algebra.mT) / 2 if isinstance(group, Orthogonal) else algebra


def random_algebra(like: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Algebra coordinates of the same shapes and, task by task and site by site, the same norms, in directions
    drawn uniformly; the control for elements that were chosen."""
    return tuple(_same_norm(t, torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)) for t in like)


def _same_norm(t: Tensor, drawn: Tensor) -> Tensor:
    return drawn * per_task(t.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1), drawn)
