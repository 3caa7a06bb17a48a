"""Ascent of an objective along the orbit, in the Lie algebra.

Each step acts with ``exp(s D)``, D the gradient of the objective with respect to the algebra coordinates T at the
present point, divided by its Frobenius norm over all sites. At T = 0 that gradient is linear in the gradient by the
parameters (the moment map): for an exact site with producers V and consumers U,

    d f(exp(T) . w) / dT = sum over V of (df/dV) V^T - sum over U of U^T (df/dU),

its diagonal for positive scalings, its skew part for rotations. So no exponential is differentiated.

The gradient norm needs even less where all sites are exact. As L(g . w) = L(w) for every w, the gradient at g . w is the
image of the gradient at w under the dual element g^-T. The whole search therefore moves the gradient, not the
parameters, and evaluates the loss at its two ends only, however many steps lie between.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from meta_teleport.params import Params, aliases, detach, dot, per_task, where
from meta_teleport.symmetry.groups import FirstOrder, Group, Orthogonal, PositiveScaling
from meta_teleport.symmetry.site import LayerInput, Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.objectives import Loss, Objective, gradient_norm

Direction = Literal["raise", "lower"]
Slope = Callable[[], Sequence[Tensor]]
Evaluation = Callable[[Params], tuple[Tensor, Slope]]


class Ascent(NamedTuple):
    """Where an ascent ended.

    The moved parameters, the objective ``(tasks,)`` at the start and at the end, the length of the way ``(tasks,)`` (the
    sum of the Frobenius norms of the algebra coordinates of all steps that were kept) and, per site, the product of the
    elements of these steps.
    """

    params: Params
    before: Tensor
    after: Tensor
    length: Tensor
    elements: tuple[Tensor, ...]


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
    objective is undone and s halved. ``steps`` steps cost ``steps + 1`` evaluations of the objective and at most
    ``steps`` of its gradient by the parameters; for the gradient norm along exact sites, two gradients of the loss in
    all. ``inputs`` are needed by data-dependent sites only.
    """
    start, sign = detach(params), 1.0 if direction == "raise" else -1.0
    if objective is gradient_norm and all(_is_exact(site) for site in symmetry.sites):
        return _ascend_by_transport(symmetry, start, loss, sign, steps, size)
    return _climb(symmetry, start, _differentiated(symmetry, inputs, loss, objective), sign, steps, size, inputs)


def moment_map(symmetry: Symmetry, params: Params, gradients: Params) -> list[Tensor]:
    """The gradient of ``f(exp(T) . w)`` at T = 0, one tensor ``(*tasks, *algebra_shape)`` per site, from the gradient of
    f at w; see the formula of the module. For sites whose action is the one formula of ``Site``."""
    return [_site_moment(site, params, gradients) for site in symmetry.sites]


def _site_moment(site: Site, params: Params, gradients: Params) -> Tensor:
    def products(views: Sequence, transposed: bool) -> list[Tensor]:
        pairs = [(view.matrix(gradients[view.name]), view.matrix(params[view.name])) for view in views]
        return [_moment(site.group, b, a) if transposed else _moment(site.group, a, b) for a, b in pairs]

    produced, consumed = products(site.producers, False), products(site.consumers, True)
    total = sum(produced[1:], produced[0]) if produced else -consumed.pop()
    return total - sum(consumed) if consumed else total


def _moment(group: Group, a: Tensor, b: Tensor) -> Tensor:
    """``a b^T`` for matrices ``(*tasks, k, rest)``, in the algebra coordinates of the group."""
    if isinstance(group, PositiveScaling):
        return (a * b).sum(-1)
    moment = a @ b.mT
    return (moment - moment.mT) / 2 if isinstance(group, Orthogonal) else moment


def _is_plain(site: Site) -> bool:
    return type(site) is Site


def _is_exact(site: Site) -> bool:
    return _is_plain(site) and not isinstance(site.group, FirstOrder)


def _differentiated(symmetry: Symmetry, inputs: LayerInput | None, loss: Loss, objective: Objective) -> Evaluation:
    """The objective as value and slope. The parameters are leaves, because an objective may differentiate by those that
    no site moves, too."""
    plain = all(_is_plain(site) for site in symmetry.sites)
    moving = sorted({name for site in symmetry.sites for name in site.parameters})

    def evaluate(point: Params) -> tuple[Tensor, Slope]:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in point.items()}
        like = next(iter(point.values()))
        with torch.enable_grad():
            if plain:
                algebra, seen = [leaves[name] for name in moving], leaves
            else:
                algebra = [like.new_zeros(len(like), *s.group.algebra_shape).requires_grad_() for s in symmetry.sites]
                seen = aliases(symmetry.flow(leaves, algebra, inputs))
            value = objective(loss, seen)

        def slope() -> Sequence[Tensor]:
            gradients = torch.autograd.grad(value.sum(), algebra, materialize_grads=True)
            return moment_map(symmetry, point, dict(zip(moving, gradients, strict=True))) if plain else gradients

        return value.detach(), slope

    return evaluate


def _ascend_by_transport(
    symmetry: Symmetry, params: Params, loss: Loss, sign: float, steps: int, size: float | Tensor
) -> Ascent:
    """Ascent of the gradient norm along exact sites.

    Flowing the gradient along S = -T^T transports it along T. What is reached is measured, not predicted: where
    rounding (or a loss that the sites do not leave alone) spoils the rise, the task stays where it was.
    """
    gradients = _gradient(loss, params)
    moving = {name for site in symmetry.sites for name in site.parameters}
    before = dot(gradients, gradients)
    start = {name: g for name, g in gradients.items() if name in moving}

    def evaluate(point: Params) -> tuple[Tensor, Slope]:
        return dot(point, point), lambda: moment_map(symmetry, point, {name: 2 * g for name, g in point.items()})

    found = _climb(symmetry, start, evaluate, sign, steps, size)
    elements = tuple(site.group.dual(g) for site, g in zip(symmetry.sites, found.elements, strict=True))
    point = symmetry.act(params, elements)
    reached = _gradient(loss, point)
    after = dot(reached, reached)
    kept = sign * after >= sign * before
    identities = _identities(symmetry, params)
    return Ascent(
        where(kept, point, params),
        before,
        torch.where(kept, after, before),
        torch.where(kept, found.length, 0.0),
        _choose(kept, elements, identities),
    )


def _climb(
    symmetry: Symmetry,
    best: Params,
    evaluate: Evaluation,
    sign: float,
    steps: int,
    size: float | Tensor,
    inputs: LayerInput | None = None,
) -> Ascent:
    first, slope = evaluate(best)
    direction = _unit(slope(), sign)
    value, length, elements = first, torch.zeros_like(first), _identities(symmetry, best)
    scale = torch.as_tensor(size, dtype=first.dtype, device=first.device).expand_as(first)
    for step in range(steps):
        with torch.no_grad():
            pairs = [s.group.exp_pair(per_task(scale, d) * d) for s, d in zip(symmetry.sites, direction, strict=True)]
            point = symmetry.act(best, [g for g, _ in pairs], inputs, [inverse for _, inverse in pairs])
        reached, slope = evaluate(point)
        better = (sign * reached > sign * value) & torch.isfinite(reached)
        if bool(better.any()):
            best, value = where(better, point, best), torch.where(better, reached, value)
            composed = [s.group.compose(g, h) for s, (g, _), h in zip(symmetry.sites, pairs, elements, strict=True)]
            elements = _choose(better, composed, elements)
            if step + 1 < steps:
                direction = _choose(better, _unit(slope(), sign), direction)
        length = torch.where(better, length + scale, length)
        scale = torch.where(better, scale, scale / 2)
    return Ascent(best, first, value, length, tuple(elements))


def _gradient(loss: Loss, params: Params) -> Params:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(leaves).sum(), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))


def _identities(symmetry: Symmetry, params: Params) -> tuple[Tensor, ...]:
    like = next(iter(params.values()))
    return tuple(s.group.identity(len(like), dtype=like.dtype, device=like.device) for s in symmetry.sites)


def _choose(mask: Tensor, yes: Sequence[Tensor], no: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.where(per_task(mask, n), y, n) for y, n in zip(yes, no, strict=True))


def _unit(slopes: Sequence[Tensor], sign: float) -> tuple[Tensor, ...]:
    """The slopes divided by their common Frobenius norm, task by task."""
    norm = torch.stack([s.square().flatten(1).sum(1) for s in slopes]).sum(0).sqrt()
    norm = norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return tuple(sign * s / per_task(norm, s) for s in slopes)
