"""How copies of an image network teleport: the published searches, those of this package, and random controls.

The published searches (Zhao et al. 2024, its code) take plain gradient steps on an objective with respect to algebra
coordinates at the identity, ``T = +-size * d objective / dT``, by action (b) with I + T in place of exp(T). They keep
using the activations from before the first step; here every step sees those of the weights that it moves.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from meta_teleport.optimizers.ensemble import Moved, Search
from meta_teleport.params import Params, aliases, per_task, where
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.ascent import Direction, ascend
from meta_teleport.teleportation.curvature import kappa, unit_algebra
from meta_teleport.teleportation.objectives import Curvature, Loss, Objective, Sharpness, gradient_norm

MakeObjective = Callable[[Symmetry, Tensor], Objective]

SIGNS: dict[Direction, float] = {"raise": 1.0, "lower": -1.0}


def of_gradient_norm(symmetry: Symmetry, inputs: Tensor) -> Objective:
    """The squared gradient norm."""
    return gradient_norm


def of_sharpness(
    symmetry: Symmetry, inputs: Tensor, *, directions: int = 10, seed: int = 0, nonnegative: bool = False
) -> Objective:
    """Sharpness with the published scales 0.1 to 0.9; with ``nonnegative``, its directions, too."""
    return Sharpness(directions=directions, seed=seed, nonnegative=nonnegative)


def of_curvature(symmetry: Symmetry, inputs: Tensor, *, directions: int = 10, seed: int = 0) -> Objective:
    """The mean curvature of the orbit."""
    return Curvature(symmetry, symmetry.prepare(inputs), directions=directions, seed=seed)


def climb(make: MakeObjective, direction: Direction = "raise", steps: int = 10, size: float = 0.1) -> Search:
    """The search of this package: steps of length ``size`` in the Lie algebra, halved where they do not improve."""

    def search(symmetry: Symmetry, params: Params, loss: Loss, inputs: Tensor) -> Moved:
        objective, at = make(symmetry, inputs), symmetry.prepare(inputs)
        end = ascend(symmetry, params, at, loss, objective=objective, direction=direction, steps=steps, size=size)
        exact = all(site.exact for site in symmetry.sites)
        return Moved(end.params, end.length, end.elements if exact else None)

    return search


def gradient_steps(
    make: MakeObjective, size: float, direction: Direction = "raise", steps: int = 10, cap: float = torch.inf
) -> Search:
    """The published search; a copy whose objective is above ``cap`` stops."""

    def search(symmetry: Symmetry, params: Params, loss: Loss, inputs: Tensor) -> Moved:
        objective, at = make(symmetry, inputs), symmetry.prepare(inputs)
        like = next(iter(params.values()))
        gone = torch.zeros(len(like), device=like.device)
        going = torch.ones_like(gone, dtype=torch.bool)
        for _ in range(steps):
            zero = [like.new_zeros(len(like), *site.group.algebra_shape).requires_grad_() for site in symmetry.sites]
            with torch.enable_grad():
                value = objective(loss, aliases(symmetry.flow(params, zero, at)))
            going = going & (value.detach() <= cap)
            if not bool(going.any()):
                break
            slopes = torch.autograd.grad(value.sum(), zero)
            algebra = [SIGNS[direction] * size * slope for slope in slopes]
            params = where(going, symmetry.flow(params, algebra, at), params)
            gone = gone + going * _norm(algebra)
        return Moved({name: p.detach() for name, p in params.items()}, gone)

    return search


def curvature_steps(
    sites: Sequence[str], size: float, direction: Direction, seed: int, limit: float = torch.inf
) -> Search:
    """The published search for curvature: one random M at ``sites`` with entries from U(0, 1), and one step along it,
    ``t = +-size * d kappa / dt`` at t = 0, shortened where t M is longer than ``limit``; kappa(t) is the curvature at t
    of the one curve ``exp(t M) . w``."""

    def search(symmetry: Symmetry, params: Params, loss: Loss, inputs: Tensor) -> Moved:
        moving, like = symmetry.only(*sites), next(iter(params.values()))
        at, generator = moving.prepare(inputs), torch.Generator().manual_seed(seed)
        drawn = [torch.rand(site.group.algebra_shape, generator=generator) for site in moving.sites]
        algebra = [m.to(like).expand(len(like), *m.shape) for m in drawn]
        t = like.new_zeros(len(like)).requires_grad_()
        (slope,) = torch.autograd.grad(kappa(moving, algebra, at, params, t).sum(), t)
        longest = limit / _norm(algebra)
        step = (SIGNS[direction] * size * slope).clamp(-longest, longest)
        moved = [per_task(step, m) * m for m in algebra]
        return Moved({n: p.detach() for n, p in moving.flow(params, moved, at).items()}, _norm(moved))

    return search


def as_far(size: Tensor, seed: int) -> Search:
    """Goes the distance ``size`` ``(copies,)`` in a random direction of the Lie algebra, drawn for every copy."""

    def control(symmetry: Symmetry, params: Params, loss: Loss, inputs: Tensor) -> Moved:
        like, generator = next(iter(params.values())), torch.Generator().manual_seed(seed)
        drawn = (unit_algebra(symmetry, None, copy, generator) for copy in like.split(1))
        directions = [torch.cat(of_site) for of_site in zip(*drawn, strict=True)]
        algebra = [per_task(size, m) * m for m in directions]
        exact = all(site.exact for site in symmetry.sites)
        moved = symmetry.flow(params, algebra, symmetry.prepare(inputs))
        return Moved(moved, size, symmetry.exp(algebra) if exact else None)

    return control


def randomized(search: Search, seed: int) -> Search:
    """The control: where ``search`` would go a certain distance, go as far in a random direction."""

    def control(symmetry: Symmetry, params: Params, loss: Loss, inputs: Tensor) -> Moved:
        size = search(symmetry, params, loss, inputs).size
        return as_far(size, seed)(symmetry, params, loss, inputs)

    return control


def stay(symmetry: Symmetry, params: Params, loss: Loss, inputs: Tensor) -> Moved:
    """The control that moves nothing: with ``state="reset"``, a reset of the optimizer alone."""
    like = next(iter(params.values()))
    return Moved(params, like.new_zeros(len(like)))


def _norm(algebra: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.flatten(1).square().sum(1) for t in algebra]).sum(0).sqrt()


published_gradient_norm = partial(gradient_steps, of_gradient_norm, cap=100.0)
"""Its squared gradient norm is capped at 100."""
