"""What is measured around a site of scalings: the diagonals of what is measured around one of matrices."""

from dataclasses import replace

import laws
import pytest
import torch
from torch import Tensor, nn

from meta_teleport.detection.detect import find_symmetries
from meta_teleport.equivariant.site_features import SiteFeatures, diagonal_site_features, site_features
from meta_teleport.params import Params
from meta_teleport.rules.rule import Observation
from meta_teleport.symmetry.groups import PositiveScaling
from meta_teleport.symmetry.site import Site

CONVOLUTIONS = nn.Sequential(
    nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
)
SYMMETRY = find_symmetries(CONVOLUTIONS, torch.zeros(1, 2, 5, 5))
SITES = tuple(site for site in SYMMETRY.sites if isinstance(site.group, PositiveScaling))


def drawn(seed: int, dtype: torch.dtype = torch.float64) -> Params:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: p.shape for name, p in CONVOLUTIONS.named_parameters()}
    return {name: torch.randn(3, *shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def observed(params: Params, gradients: Params) -> Observation:
    return Observation(params, gradients, torch.ones(3), torch.zeros(3))


def values(found: SiteFeatures) -> tuple[Tensor, ...]:
    return torch.stack(list(found.grams)), found.sizes, found.product


def diagonals(found: SiteFeatures) -> tuple[Tensor, ...]:
    grams, sizes, product = values(found)
    return grams.diagonal(dim1=-2, dim2=-1), sizes, product.diagonal(dim1=-2, dim2=-1)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_scalings_see_the_diagonals_of_matrices(site: Site) -> None:
    seen = observed(drawn(0), drawn(1))
    found = diagonal_site_features(site, seen)
    for value, expected in zip(values(found), diagonals(site_features(site, seen)), strict=True):
        laws.assert_close(value, expected, 1e-12)
    wide = replace(site, consumers=())
    laws.must_fail(laws.assert_close, diagonal_site_features(wide, seen).sizes, found.sizes, 1e-3)


def test_small_gradients_count_as_large_ones() -> None:
    params, gradients = drawn(0, torch.float32), drawn(1, torch.float32)

    def seen(scale: float) -> tuple[Tensor, ...]:
        small = observed(params, {name: scale * g for name, g in gradients.items()})
        return values(diagonal_site_features(SITES[0], small))

    for value, expected in zip(seen(1e-16), seen(1.0), strict=True):
        laws.assert_close(value, expected, 1e-5)
    laws.must_fail(laws.assert_close, seen(1e-25)[0], seen(1.0)[0], 1e-5)


@pytest.mark.parametrize("side", ["producers", "consumers"])
def test_a_side_of_zeros_has_finite_derivatives(side: str) -> None:
    params, gradients = drawn(0), drawn(1)
    for view in getattr(SITES[0], side):
        params[view.name] = torch.zeros_like(params[view.name])
    leaves = {name: p.requires_grad_() for name, p in params.items()}
    found = diagonal_site_features(SITES[0], observed(leaves, gradients))
    moved = [leaves[name] for name in SITES[0].parameters]
    derivatives = torch.autograd.grad(found.sizes.sum() + found.product.sum(), moved)
    assert all(bool(torch.isfinite(d).all()) for d in derivatives) and any(bool(d.any()) for d in derivatives)
