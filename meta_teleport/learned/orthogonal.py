"""Orthogonalised directions, those of Muon (Jordan et al. 2024), for many parameters at once."""

from math import prod

import torch
from torch import Tensor

from meta_teleport.linalg.newton_schulz import newton_schulz
from meta_teleport.params import Params, per_task, rows

RIDGE = 0.1


def orthogonalised(directions: Params) -> Params:
    """Of every m ``(tasks, a, *b)``, as a matrix with a rows, its orthogonal factor with entries of mean square 1:

        O(m) = sqrt(d) (m m^T + (0.1 |m|)^2 / k)^(-1/2) m        for k rows and d >= k columns, transposed for a > b,

    to within the third by which Newton-Schulz iterations are off. The ridge, a tenth of a singular value of mean size,
    is for meta-gradients: without it they grow with the inverse of the smallest one. Vectors are divided by the root
    of their mean square; zero stays zero.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, m in directions.items():
        groups.setdefault(tuple(sorted(_matrix_shape(m))), []).append(name)
    found: Params = {}
    for (k, d), names in groups.items():
        wide = torch.cat([_wide(directions[name]) for name in names])
        pieces = (_ridged(wide, k) * d**0.5).chunk(len(names))
        found |= {name: _restored(piece, directions[name]) for name, piece in zip(names, pieces, strict=True)}
    return {name: found[name] for name in directions}


def _ridged(wide: Tensor, k: int) -> Tensor:
    """Newton-Schulz on ``[m / |m|, ridge]``, whose part at m has the ridge under its root."""
    norm = rows(wide).norm(dim=1)
    unit = wide / per_task(torch.where(norm > 0, norm, 1.0), wide)
    if k == 1:
        return unit
    ridge = torch.eye(k, dtype=wide.dtype, device=wide.device) * (RIDGE / k**0.5)
    both = torch.cat([unit, ridge.expand(len(wide), k, k)], 2) / (1 + RIDGE**2) ** 0.5
    return newton_schulz(both)[..., : wide.shape[-1]]


def _matrix_shape(m: Tensor) -> tuple[int, int]:
    return (m.shape[1], prod(m.shape[2:])) if m.ndim > 2 else (1, prod(m.shape[1:]))


def _wide(m: Tensor) -> Tensor:
    """The matrix ``(tasks, k, d)`` with the shorter side in front."""
    matrix = m.reshape(len(m), *_matrix_shape(m))
    return matrix.mT if matrix.shape[1] > matrix.shape[2] else matrix


def _restored(wide: Tensor, like: Tensor) -> Tensor:
    a, b = _matrix_shape(like)
    return (wide.mT if a > b else wide).reshape(like.shape)
