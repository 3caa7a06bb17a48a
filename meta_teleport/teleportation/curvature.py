"""The curvature of curves on an orbit, by exact derivatives."""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.func import jvp

from meta_teleport.params import Params, axpy, dot
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Symmetry


def velocity_and_acceleration(
    symmetry: Symmetry, params: Params, algebra: Sequence[Tensor], inputs: Tensor | LayerInput | None = None
) -> tuple[Params, Params]:
    """The first two derivatives at t = 0 of ``exp(t M) . w``, by forward mode over forward mode.

    ``algebra`` is M, one tensor per site, ``(tasks, *algebra_shape)`` or broadcasting to it. The result holds the
    parameters that some site moves and is differentiable with respect to ``params``.
    """
    moving = {name for site in symmetry.sites for name in site.parameters}
    like = next(iter(params.values()))
    zero, one = like.new_zeros(()), like.new_ones(())

    def curve(t: Tensor) -> Params:
        moved = symmetry.flow(params, [t * m for m in algebra], inputs)
        return {name: p for name, p in moved.items() if name in moving}

    def velocity(t: Tensor) -> Params:
        return jvp(curve, (t,), (one,))[1]

    _load_forward_mode()
    return cast(tuple[Params, Params], jvp(velocity, (zero,), (one,)))


@cache
def _load_forward_mode() -> None:
    """Uses forward mode once: torch then compiles parts of it with its own deprecated compiler, and warns of that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script", category=FutureWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def curvature(
    symmetry: Symmetry, params: Params, algebra: Sequence[Tensor], inputs: Tensor | LayerInput | None = None
) -> Tensor:
    """The curvature kappa of ``exp(t M) . w`` at t = 0, shape ``(tasks,)``.

    ``kappa = sqrt(|w'|^2 |w''|^2 - (w' . w'')^2) / |w'|^3``, computed as ``|n| / |w'|^2`` with n the part of w'' normal
    to w', which does not cancel. A curve that stands still has curvature 0.
    """
    first, second = velocity_and_acceleration(symmetry, params, algebra, inputs)
    speed = dot(first, first)
    moving = speed > 0
    speed = torch.where(moving, speed, 1.0)
    normal = axpy(-dot(first, second) / speed, first, second)
    square = dot(normal, normal)
    bent = moving & (square > 0)
    return torch.where(bent, torch.where(bent, square, 1.0).sqrt() / speed, 0.0)


def random_directions(
    symmetry: Symmetry, sites: Sequence[str] | None, like: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """Algebra coordinates M, one tensor ``(tasks, *algebra_shape)`` per site, uniform on the sphere of Frobenius norm
    1 over the named ``sites`` (None: all of them) and zero at the others; the same for every task of ``like``.

    Drawn in float64 on the CPU.
    """
    drawn = []
    for site in symmetry.sites:
        m = torch.randn(site.group.algebra_shape, generator=generator, dtype=torch.float64)
        drawn.append(m if sites is None or site.name in sites else torch.zeros_like(m))
    norm = torch.stack([m.square().sum() for m in drawn]).sum().sqrt()
    return [(m / norm).to(like).expand(like.shape[0], *m.shape) for m in drawn]
