"""The dimensions of an orbit and of the sets that it lies in, from ranks of exact derivatives.

At weights w (P numbers) with loss L, outputs f(w, X) on a batch, and a group that acts by exp(T) . w:

    orbit        rank of T -> d/dt exp(tT) . w at t = 0       one tangent vector per coordinate of the Lie algebra
    level set    P - 1                                        {L = c} where the gradient is not zero
    fibre        P - rank of df/dw                            {f(., X) = f(w, X)}, for one batch, or for many inputs:
                                                              {f(., x) = f(w, x) for all x}

Each set lies in the one below it, for every batch that the action keeps, in the order orbit, fibre, level set. Where
the loss is zero, its level set is the fibre of the batch.

For two layers without activation, U (m x k) and V (k x d) of full rank, the fibre of the product is one orbit of GL(k)
unless k lies between m and d. There the row space of V (if m < k < d) is one of the k-dimensional spaces that contain
the row space of U V, which no g changes, and

    fibre - orbit = (k - min(m, d)) (max(m, d) - k).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from meta_teleport.params import Params, flatten
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.curvature import velocity_and_acceleration

TOLERANCE = 1e-9


class Rank(NamedTuple):
    """A numerical rank, and the smallest singular value that counts over the largest that does not."""

    value: int
    gap: float


def numerical_rank(matrix: Tensor) -> Rank:
    """How many singular values are above ``TOLERANCE`` times the largest; those below count as rounding of it at
    least."""
    values = torch.linalg.svdvals(matrix)
    largest = float(values[0]) if len(values) else 0.0
    if largest == 0:
        return Rank(0, float("inf"))
    value = int((values > TOLERANCE * largest).sum())
    dropped = float(values[value]) if value < len(values) else 0.0
    return Rank(value, float(values[value - 1]) / max(dropped, largest * torch.finfo(matrix.dtype).eps))


def orbit_tangents(symmetry: Symmetry, params: Params, inputs: Tensor) -> Tensor:
    """The velocities at w of all coordinate directions of the Lie algebra, ``(coordinates, P)``, for parameters
    ``(1, *shape)`` and inputs ``(n, ...)``: one task per coordinate."""
    sizes = [torch.Size(site.group.algebra_shape).numel() for site in symmetry.sites]
    like = next(iter(params.values()))
    basis = torch.eye(sum(sizes), dtype=like.dtype)
    algebra = [
        part.reshape(-1, *site.group.algebra_shape)
        for part, site in zip(basis.split(sizes, dim=1), symmetry.sites, strict=True)
    ]
    point = {name: p.expand(len(basis), *p.shape[1:]) for name, p in params.items()}
    seen = inputs.expand(len(basis), *inputs.shape) if any(site.needs_inputs for site in symmetry.sites) else None
    velocity, _ = velocity_and_acceleration(symmetry, algebra, seen, point)
    still = {name: torch.zeros_like(p) for name, p in point.items()}
    return flatten({**still, **velocity}).detach()


def output_jacobian(model: nn.Module, params: Params, inputs: Tensor) -> Tensor:
    """``df/dw`` ``(n outputs, P)`` at parameters ``(1, *shape)``."""
    single = {name: p[0].detach() for name, p in params.items()}
    found = jacrev(lambda p: functional_call(model, p, (inputs,)).flatten())(single)
    return flatten({name: found[name] for name in params})


class Dimensions(NamedTuple):
    """All of them at one point; ``gap`` is the smallest of the ranks, ``outside`` how far the orbit's tangents are from
    the fibre's (the largest change of an output along a unit tangent, over the largest singular value of df/dw)."""

    parameters: int
    level: int
    fibre: int
    function: int
    orbit: int
    gap: float
    outside: float


def dimensions(
    model: nn.Module, symmetries: Sequence[Symmetry], params: Params, batch: Tensor, many: Tensor
) -> Dimensions:
    """Of the orbit under all the symmetries together, at parameters ``(1, *shape)``, for the outputs on a ``batch`` and
    on ``many`` inputs."""
    size = sum(p[0].numel() for p in params.values())
    tangents = torch.cat([orbit_tangents(symmetry, params, batch) for symmetry in symmetries])
    seen = output_jacobian(model, params, batch)
    on_batch, everywhere = numerical_rank(seen), numerical_rank(output_jacobian(model, params, many))
    orbit = numerical_rank(tangents)
    unit = tangents / tangents.norm(dim=1, keepdim=True).clamp(min=torch.finfo(tangents.dtype).tiny)
    outside = float((unit @ seen.mT).norm(dim=1).max() / torch.linalg.matrix_norm(seen, 2))
    gap = min(on_batch.gap, everywhere.gap, orbit.gap)
    return Dimensions(size, size - 1, size - on_batch.value, size - everywhere.value, orbit.value, gap, outside)
