"""The moment map against differentiation through the exponential."""

import laws
import pytest
import torch
from torch import Tensor

from meta_teleport.params import Params
from meta_teleport.symmetry.groups import GL, FirstOrder, Group, Orthogonal, PositiveScaling
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.tasks.functions import Functions
from meta_teleport.teleportation.moment_map import has_moment_map, moment_map, transports_gradients

SHAPES = {"V": (4, 6), "b": (4,), "U": (4, 4), "c": (4,), "W": (8, 4), "X": (2, 8)}
GROUPS = [GL(4), PositiveScaling(4), Orthogonal(4), FirstOrder(4)]


def chain(group: Group) -> Symmetry:
    """Two neighbours that share U, and a site whose units are in two blocks along the second axis of X."""
    first = Site("V", group, (View.along("V", (4, 6), 0), View.along("b", (4,), 0)), (View.along("U", (4, 4), 1),))
    second = Site("U", group, (View.along("U", (4, 4), 0), View.along("c", (4,), 0)), (View.along("W", (8, 4), 1),))
    heads = type(group)(4, (2,))
    blocks = Site("W", heads, (View("W", 2, (2, 4, 4), (1,), (0,)),), (View("X", 2, (2, 2, 4), (2,), (1,)),))
    return Symmetry((first, second, blocks))


def function(params: Params) -> Tensor:
    """No symmetry at all: one number per task."""
    return torch.stack(
        [(p.sin() * (i + 1)).flatten(1).cumsum(1).square().sum(1) for i, p in enumerate(params.values())]
    ).prod(0)


def through_the_exponential(symmetry: Symmetry, params: Params) -> list[Tensor]:
    algebra = [torch.zeros(3, *s.group.algebra_shape, dtype=torch.float64, requires_grad=True) for s in symmetry.sites]
    return list(torch.autograd.grad(function(symmetry.flow(params, algebra)).sum(), algebra))


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: type(group).__name__)
def test_the_moment_map_is_the_derivative_along_the_orbit(group: Group, generator: torch.Generator) -> None:
    params = {n: torch.randn(3, *s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    gradients = dict(zip(leaves, torch.autograd.grad(function(leaves).sum(), list(leaves.values())), strict=True))
    symmetry = chain(group)
    expected = through_the_exponential(symmetry, params)
    for ours, theirs in zip(moment_map(symmetry, params, gradients), expected, strict=True):
        laws.assert_close(ours, theirs, 1e-10)
    elsewhere = {name: p.roll(1, 0) for name, p in params.items()}
    for ours, theirs in zip(moment_map(symmetry, elsewhere, gradients), expected, strict=True):
        laws.must_fail(laws.assert_close, ours, theirs, 1e-2)


def test_which_sites_have_one(generator: torch.Generator) -> None:
    sites = [chain(group).sites[0] for group in GROUPS]
    assert all(has_moment_map(site) for site in sites)
    assert [transports_gradients(site) for site in sites] == [True, True, True, False]
    plane = Functions("booth").sample(1, generator).symmetry.sites[0]
    assert not has_moment_map(plane) and not transports_gradients(plane)
