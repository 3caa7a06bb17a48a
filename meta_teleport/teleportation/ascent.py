"""Ascent of an objective along the orbit, in the Lie algebra.

Each step acts with ``exp(s D)``, D the gradient of the objective with respect to the algebra coordinates at the present
point, divided by its Frobenius norm over all sites. Where the moment map gives it, no exponential is differentiated.

The gradient norm needs even less where all sites are exact. As L(g . w) = L(w) for every w, the gradient at g . w is
the image of the gradient G at w under the dual element g^-T, and the slope of its squared norm is -2 times the moment
of G with itself. The whole search moves the gradient instead of the parameters, and evaluates the loss at its two ends
only, however many steps lie between.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from meta_teleport.params import Params, aliases, detach, dot, leaves, per_task, value_and_grad, where
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.moment_map import has_moment_map, moment_map, transports_gradients
from meta_teleport.teleportation.objectives import Loss, Objective, gradient_norm

Direction = Literal["raise", "lower"]
Slope = Callable[[], Sequence[Tensor]]
Evaluation = Callable[[Params], tuple[Tensor, Slope]]
Move = Callable[[Params, Sequence[Tensor], Sequence[Tensor]], Params]


class Ascent(NamedTuple):
    """Where an ascent ended.

    The moved parameters, the objective ``(tasks,)`` at the start and at the end, the length of the way ``(tasks,)``:
    the sum of the Frobenius norms of the algebra coordinates of all steps that were kept; and, per site, the product
    of the elements of these steps, and its inverse.
    """

    params: Params
    before: Tensor
    after: Tensor
    length: Tensor
    elements: tuple[Tensor, ...]
    inverses: tuple[Tensor, ...]


def ascend(
    symmetry: Symmetry,
    params: Params,
    inputs: LayerInput | None,
    loss: Loss,
    *,
    objective: Objective = gradient_norm,
    direction: Direction = "raise",
    steps: int = 10,
    size: float | Tensor = 0.1,
) -> Ascent:
    """Moves along the orbit to raise (or lower) ``objective``; it never ends on the wrong side of where it began.

    The length s of a step starts at ``size`` (a number, or ``(tasks,)``); a step that did not improve a task's
    objective is undone and s halved. That costs ``steps + 1`` evaluations of the objective and at most ``steps`` of its
    gradient by the parameters; for the gradient norm along exact sites, two gradients of the loss in all.
    ``inputs`` are needed by data-dependent sites only.
    """
    start, sign = detach(params), 1.0 if direction == "raise" else -1.0
    if objective is gradient_norm and all(transports_gradients(site) for site in symmetry.sites):
        return _ascend_by_transport(symmetry, start, loss, sign, steps, size)

    def move(point: Params, elements: Sequence[Tensor], inverses: Sequence[Tensor]) -> Params:
        return symmetry.act(point, elements, inputs, inverses)

    return _climb(symmetry, start, move, _differentiated(symmetry, inputs, loss, objective), sign, steps, size)


def identities(symmetry: Symmetry, params: Params) -> tuple[Tensor, ...]:
    """The neutral element of every site, for parameters ``(tasks, *shape)``."""
    like = next(iter(params.values()))
    return tuple(s.group.identity(len(like), dtype=like.dtype, device=like.device) for s in symmetry.sites)


def _differentiated(symmetry: Symmetry, inputs: LayerInput | None, loss: Loss, objective: Objective) -> Evaluation:
    """The objective as value and slope. The parameters are leaves, because an objective may differentiate by those that
    no site moves, too."""
    linear = all(has_moment_map(site) for site in symmetry.sites)
    moving = _moving(symmetry)

    def evaluate(point: Params) -> tuple[Tensor, Slope]:
        free = leaves(point)
        like = next(iter(point.values()))
        with torch.enable_grad():
            if linear:
                variables, seen = [free[name] for name in moving], free
            else:
                variables = [like.new_zeros(len(like), *s.group.algebra_shape).requires_grad_() for s in symmetry.sites]
                seen = aliases(symmetry.flow(free, variables, inputs))
            value = objective(loss, seen)
            total = value.sum()

        def slope() -> Sequence[Tensor]:
            gradients = torch.autograd.grad(total, variables, allow_unused=True, materialize_grads=True)
            return moment_map(symmetry, point, dict(zip(moving, gradients, strict=True))) if linear else gradients

        return value.detach(), slope

    return evaluate


def _ascend_by_transport(
    symmetry: Symmetry, params: Params, loss: Loss, sign: float, steps: int, size: float | Tensor
) -> Ascent:
    """Ascent of the gradient norm along exact sites.

    What is reached is measured, not predicted: where rounding (or a loss that the sites do not leave alone) spoils the
    improvement, the task stays where it was.
    """
    _, gradients = value_and_grad(loss, params)
    before = dot(gradients, gradients)

    def move(point: Params, elements: Sequence[Tensor], inverses: Sequence[Tensor]) -> Params:
        return symmetry.transport(point, list(zip(elements, inverses, strict=True)))

    def evaluate(point: Params) -> tuple[Tensor, Slope]:
        return dot(point, point), lambda: [-2 * moment for moment in moment_map(symmetry, point, point)]

    start = {name: gradients[name] for name in _moving(symmetry)}
    found = _climb(symmetry, start, move, evaluate, sign, steps, size)
    point = symmetry.act(params, found.elements, None, found.inverses)
    _, reached = value_and_grad(loss, point)
    after = dot(reached, reached)
    kept = sign * after >= sign * before
    stay = identities(symmetry, params)
    return Ascent(
        _keep(kept, point, params),
        before,
        torch.where(kept, after, before),
        torch.where(kept, found.length, 0.0),
        _choose(kept, found.elements, stay),
        _choose(kept, found.inverses, stay),
    )


def _climb(
    symmetry: Symmetry, best: Params, move: Move, evaluate: Evaluation, sign: float, steps: int, size: float | Tensor
) -> Ascent:
    groups = [site.group for site in symmetry.sites]
    first, slope = evaluate(best)
    direction = _unit(slope(), sign)
    value, length = first, torch.zeros_like(first)
    elements = inverses = identities(symmetry, best)
    scale = torch.as_tensor(size, dtype=first.dtype, device=first.device).expand_as(first)
    for step in range(steps):
        with torch.no_grad():
            pairs = [group.exp_pair(per_task(scale, d) * d) for group, d in zip(groups, direction, strict=True)]
            point = move(best, [g for g, _ in pairs], [inverse for _, inverse in pairs])
        reached, slope = evaluate(point)
        better = (sign * reached > sign * value) & torch.isfinite(reached)
        if bool(better.any()):
            best, value = _keep(better, point, best), torch.where(better, reached, value)
            composed = [group.compose(g, h) for group, (g, _), h in zip(groups, pairs, elements, strict=True)]
            undoing = [group.compose(h, g) for group, (_, g), h in zip(groups, pairs, inverses, strict=True)]
            elements, inverses = _choose(better, composed, elements), _choose(better, undoing, inverses)
            if step + 1 < steps:
                direction = _choose(better, _unit(slope(), sign), direction)
        length = torch.where(better, length + scale, length)
        scale = torch.where(better, scale, scale / 2)
    return Ascent(best, first, value, length, elements, inverses)


def _moving(symmetry: Symmetry) -> list[str]:
    """The names of the parameters that the sites move, each once."""
    return list(dict.fromkeys(name for site in symmetry.sites for name in site.parameters))


def _keep(mask: Tensor, yes: Params, no: Params) -> Params:
    """``where`` without copies if all tasks are kept."""
    return yes if bool(mask.all()) else where(mask, yes, no)


def _choose(mask: Tensor, yes: Sequence[Tensor], no: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.where(per_task(mask, n), y, n) for y, n in zip(yes, no, strict=True))


def _unit(slopes: Sequence[Tensor], sign: float) -> tuple[Tensor, ...]:
    """The slopes divided by their common Frobenius norm, task by task."""
    norm = torch.stack([s.square().flatten(1).sum(1) for s in slopes]).sum(0).sqrt()
    norm = norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return tuple(sign * s / per_task(norm, s) for s in slopes)
