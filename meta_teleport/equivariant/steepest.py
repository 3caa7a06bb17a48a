"""The steepest point: where on an orbit under rotations of a plane the gradient is largest, by a local model.

As L(g . w) = L(w) for every w, the gradient at g . w is known from the gradient G at w and the action alone,

    grad L(g . w) = (d/dw  g . w)^-T G,

its pull-back along g^-1; no loss is evaluated. For quadratic losses on ellipses the square n of its norm is
``n(a) = c + p cos 2a + q sin 2a`` in the angle a, with its maximum at ``atan2(q, p) / 2``, where the gradient is an
eigenvector of the Hessian and a gradient step can end at the minimum (Zhao et al. 2022, section 4.1). For others c, p
and q come from n here and at angles h to both sides, and the steepest point is what two steps of this search reach,
each taken if n rises. h is the twelfth root of the rounding, 0.05 in float64.

The steepest point moves with the point. A meta-gradient that takes it for a constant misses that the next teleport
mends what this one left, and grows by the inverse of what a step gains. So derivatives flow through it wherever they
flow through G (``second_order``).
"""

from math import cos, sin
from typing import NamedTuple

import torch
from torch import Tensor

from meta_teleport.learned.task_features import log_ratio
from meta_teleport.params import Params, aliases, leaves, per_task
from meta_teleport.symmetry.site import Site
from meta_teleport.teleportation.moment_map import has_moment_map

NUMBERS = 2
SEARCH_STEPS = 2
QUARTER = 2 / torch.pi


class SteepestPoint(NamedTuple):
    """The algebra coordinates of the rotation to the steepest point ``(tasks, 2, 2)``, and ``numbers`` ``(tasks,
    NUMBERS)``: its angle in quarter turns, without sign, and the log of how many times n is larger there."""

    rotation: Tensor
    numbers: Tensor


def has_steepest_point(site: Site) -> bool:
    """Do rotations of a plane act by other than matrix products? Products are isometries: all of the orbit is as
    steep."""
    group = site.group
    return group.is_isometric and group.has_algebra and group.k == 2 and not has_moment_map(site)


def steepest_point(site: Site, params: Params, gradients: Params) -> SteepestPoint:
    """The steepest point of the orbit of ``params`` under a site that has one: a constant, unless autograd knows how
    the ``gradients`` depend on the point."""
    slope = {name: gradients[name] for name in site.parameters}
    constant = not any(g.requires_grad for g in slope.values())
    point = {name: p.detach() if constant else p for name, p in params.items()}
    like = slope[site.parameters[0]]
    unit = torch.stack([g.flatten(1).norm(dim=1) for g in slope.values()]).norm(dim=0)
    unit = unit.clamp(min=torch.finfo(like.dtype).tiny)
    slope = {name: g / per_task(unit, g) for name, g in slope.items()}
    first = torch.stack([g.flatten(1).square().sum(1) for g in slope.values()]).sum(0)
    angle, here = torch.zeros_like(first), first
    for _ in range(SEARCH_STEPS):
        found = angle + _towards(site, point, slope, angle, here)
        reached = steepness(site, point, slope, found)
        better = reached > here
        angle, here = torch.where(better, found, angle), torch.where(better, reached, here)
    numbers = torch.stack([QUARTER * angle.abs(), log_ratio(here, first).clamp(-5, 5)], 1)
    return SteepestPoint(per_task(angle, _generator(like)) * _generator(like), numbers)


def _towards(site: Site, params: Params, gradients: Params, angle: Tensor, here: Tensor) -> Tensor:
    """The angle from ``angle``, where n is ``here``, to the steepest point of the model."""
    h = torch.finfo(here.dtype).eps ** (1 / 12)
    ahead, behind = (steepness(site, params, gradients, angle + a) for a in (h, -h))
    q = (ahead - behind) / (2 * sin(2 * h))
    p = (2 * here - ahead - behind) / (2 * (1 - cos(2 * h)))
    return torch.atan2(q, p) / 2


def steepness(site: Site, params: Params, gradients: Params, angle: Tensor) -> Tensor:
    """``|grad L|^2`` ``(tasks,)`` by what the site moves, after rotations by ``angle`` ``(tasks,)``, from the gradients
    before them."""
    forth, back = _rotation(angle), _rotation(-angle)
    moved = site.act(params, forth, inverse=back)
    own, slopes = {name: moved[name] for name in site.parameters}, [gradients[name] for name in site.parameters]
    differentiable = any(g.requires_grad for g in slopes)
    with torch.enable_grad():
        ends = aliases(own) if differentiable else leaves(own)
        undone = site.act({**moved, **ends}, back, inverse=forth)
        reached = [undone[name] for name in site.parameters]
        found = torch.autograd.grad(reached, list(ends.values()), slopes, create_graph=differentiable)
    return torch.stack([g.flatten(1).square().sum(1) for g in found]).sum(0)


def _generator(like: Tensor) -> Tensor:
    """The quarter turn, once per task: ``(tasks, 2, 2)``."""
    return like.new_tensor([[0.0, -1.0], [1.0, 0.0]]).expand(len(like), 2, 2)


def _rotation(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
