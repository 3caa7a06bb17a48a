"""The highest point of a one-parameter compact orbit, by a scan of all angles and Newton's method from the best."""

from collections.abc import Callable
from math import tau
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

ROUNDING = 1e-13


class Peak(NamedTuple):
    """The angle ``(tasks,)`` where a function is largest on an orbit, and its value there ``(tasks,)``."""

    angle: Tensor
    value: Tensor


def highest(curve: Callable[[Tensor, Tensor], Tensor], points: Tensor, angles: int = 256, refinements: int = 4) -> Peak:
    """The largest value of ``curve(point, angle)`` over all angles, for every point ``(tasks, n)``.

    ``curve`` takes one point ``(n,)`` and one angle ``()`` and has period 2 pi in the angle. A peak that is narrower
    than the grid of ``angles`` can be missed. Newton steps that lower the value by more than rounding are undone.
    """
    grid = torch.arange(angles, dtype=points.dtype, device=points.device) * (tau / angles)
    values = vmap(vmap(curve, (None, 0)), (0, None))(points, grid)
    value, index = values.max(1)
    angle = grid[index]
    first = grad(curve, 1)
    second = grad(first, 1)
    for _ in range(refinements):
        step = -vmap(first)(points, angle) / vmap(second)(points, angle)
        moved = angle + torch.nan_to_num(step).clamp(-tau / angles, tau / angles)
        reached = vmap(curve)(points, moved)
        better = reached >= value - ROUNDING * value.abs()
        angle, value = torch.where(better, moved, angle), torch.where(better, reached, value)
    return Peak(angle, value)
