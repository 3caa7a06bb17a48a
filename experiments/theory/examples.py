"""Landscapes of theory_one_teleport: where one teleport is enough, and where it is not."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from experiments.theory.landscapes import Landscape, ellipse, ellipsoid, plane, quartic, tensor

CURVATURES = tensor(1.0, 4.0, 9.0)
FLAT_CURVATURES = tensor(1.0, 1.3, 1.6)
CORNER = tensor(1.5, 1.2, 1.0)
TILT = 1.3
NEWTON_STEPS = 12
MIX = tensor(1.0, 0.5, 0.2, 1.0).reshape(2, 2)


@dataclass(frozen=True)
class Example:
    """A landscape, whether its orbits fill the level sets, whether the group acts by affine maps, and its starts."""

    landscape: Landscape
    fills: bool
    affine: bool
    starts: Callable[[int, torch.Generator], Tensor]


def sinking(time: Tensor) -> Tensor:
    """The gradient flow of ``sum_i q_i x_i^2 / 2`` from CORNER, q = FLAT_CURVATURES."""
    return CORNER * (-FLAT_CURVATURES * time).exp()


def following_axis(level: Tensor) -> Tensor:
    """An axis for every level, such that the flow from CORNER is always at the steepest point of its orbit.

    On the sphere ``|u|^2 = level`` let e be the direction of the flow's point and p = q e - (e . q e) e the direction
    in which f rises. The circle through e about ``e - TILT p`` touches the level line of f and bends downhill.
    """
    time = torch.zeros_like(level)
    for _ in range(NEWTON_STEPS):
        x = sinking(time)
        here = (FLAT_CURVATURES * x.square()).sum() / 2
        time = time + (here / level).log() * here / (FLAT_CURVATURES * x).square().sum()
    u = FLAT_CURVATURES.sqrt() * sinking(time)
    e = u / u.norm()
    axis = e - TILT * (FLAT_CURVATURES * e - (FLAT_CURVATURES * e.square()).sum() * e)
    return axis / axis.norm()


def fixed_axis(*direction: float) -> Callable[[Tensor], Tensor]:
    unit = tensor(*direction) / tensor(*direction).norm()
    return lambda level: unit


def on_the_flow(count: int, generator: torch.Generator) -> Tensor:
    return vmap(sinking)(torch.rand(count, generator=generator, dtype=torch.float64))


def example(landscape: Landscape, *, fills: bool, affine: bool) -> Example:
    return Example(landscape, fills, affine, landscape.starts)


FOLLOWING = ellipsoid("quadratic, axis follows a flow", FLAT_CURVATURES, following_axis)
EXAMPLES = (
    example(ellipse(), fills=True, affine=True),
    example(plane("booth"), fills=True, affine=True),
    example(quartic("quartic, round", tensor(1.0, 1.0), tensor(1.0, 3.0)), fills=True, affine=False),
    example(ellipsoid("quadratic, main axis", CURVATURES, fixed_axis(0, 1, 0)), fills=False, affine=True),
    Example(FOLLOWING, fills=False, affine=False, starts=on_the_flow),
    example(quartic("quartic, maxima cross", tensor(1.0, 4.0), tensor(6.0, 0.0)), fills=True, affine=False),
    example(ellipsoid("quadratic, tilted axis", CURVATURES, fixed_axis(1, 1, 1)), fills=False, affine=True),
    example(quartic("quartic, skewed", tensor(1.0, 4.0), tensor(3.0, 0.0), MIX), fills=True, affine=False),
    example(plane("rosenbrock"), fills=True, affine=False),
)
