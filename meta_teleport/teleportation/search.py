"""Searching an orbit: ascent of an objective in the Lie algebra, and random elements."""

from typing import NamedTuple

import torch
from torch import Tensor

from meta_teleport.params import Params, aliases, detach, per_task, where
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.objectives import Loss, Objective, gradient_norm


class Teleport(NamedTuple):
    """The moved parameters, the objective ``(tasks,)`` where the search started and where it ended, and the length of
    the way ``(tasks,)``: the sum of the Frobenius norms of the algebra coordinates of all steps that were kept."""

    params: Params
    before: Tensor
    after: Tensor
    length: Tensor


def ascend(
    symmetry: Symmetry,
    params: Params,
    inputs: LayerInput,
    loss: Loss,
    *,
    objective: Objective = gradient_norm,
    steps: int = 10,
    size: float | Tensor = 0.1,
) -> Teleport:
    """Moves along the orbit to raise ``objective``; it never ends below where it began.

    Each of the ``steps`` acts with ``exp(s D)``, D the gradient of the objective with respect to the algebra
    coordinates at the present point, divided by its Frobenius norm over all sites. The step s starts at ``size`` (a
    number, or ``(tasks,)``); a step that did not raise a task's objective is undone and s halved. One step costs
    one evaluation of the objective and its gradient.
    """
    best = detach(params)
    first, direction = _slope(symmetry, best, inputs, loss, objective)
    value, length = first, torch.zeros_like(first)
    scale = torch.as_tensor(size, dtype=first.dtype, device=first.device).expand_as(first)
    for _ in range(steps):
        with torch.no_grad():
            point = symmetry.flow(best, [per_task(scale, d) * d for d in direction], inputs)
        reached, slope = _slope(symmetry, point, inputs, loss, objective)
        better = (reached > value) & torch.isfinite(reached)
        best, value = where(better, point, best), torch.where(better, reached, value)
        direction = [torch.where(per_task(better, new), new, old) for new, old in zip(slope, direction, strict=True)]
        length = torch.where(better, length + scale, length)
        scale = torch.where(better, scale, scale / 2)
    return Teleport(best, first, value, length)


def random_algebra(like: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Algebra coordinates of the same shapes and, task by task and site by site, the same norms, in directions
    drawn uniformly; the control for elements that were chosen."""
    return tuple(_same_norm(t, torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)) for t in like)


def _same_norm(t: Tensor, drawn: Tensor) -> Tensor:
    return drawn * per_task(t.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1), drawn)


def _slope(
    symmetry: Symmetry, params: Params, inputs: LayerInput, loss: Loss, objective: Objective
) -> tuple[Tensor, list[Tensor]]:
    """The objective and its unit gradient with respect to the algebra coordinates at the identity.

    The parameters are leaves, because an objective may differentiate by those that no site moves, too.
    """
    tasks, like = next(iter(params.values())).shape[0], next(iter(params.values()))
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    with torch.enable_grad():
        algebra = [like.new_zeros(tasks, *site.group.algebra_shape, requires_grad=True) for site in symmetry.sites]
        value = objective(loss, aliases(symmetry.flow(leaves, algebra, inputs)))
        gradients = torch.autograd.grad(value.sum(), algebra)
    norm = torch.stack([g.square().flatten(1).sum(1) for g in gradients]).sum(0).sqrt()
    norm = norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return value.detach(), [g / per_task(norm, g) for g in gradients]
