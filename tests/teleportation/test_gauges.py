"""Closed-form elements: what each promises, that the product stays, and that a second time moves nothing."""

from collections.abc import Callable
from functools import partial

import laws
import pytest
import tolerances
import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.symmetry.groups import GL, FirstOrder, Orthogonal, PositiveScaling
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.views import View
from meta_teleport.tasks.functions import Functions
from meta_teleport.teleportation.gauges import (
    GAUGES,
    balanced,
    principal_axes,
    whitened_activations,
    whitened_consumers,
    whitened_producers,
)

SHAPES = {"V": (4, 7), "b": (4,), "U": (5, 4), "W": (3, 4), "Q": (8, 6), "O": (5, 8), "A": (4, 2), "C": (2, 4)}


def two_by_two(group: GL | PositiveScaling) -> Site:
    producers = (View.along("V", (4, 7), 0), View.along("b", (4,), 0))
    return Site("pair", group, producers, (View.along("U", (5, 4), 1), View.along("W", (3, 4), 1)))


def heads(group: GL | PositiveScaling) -> Site:
    """Two heads of four units."""
    return Site("heads", group, (View("Q", 2, (2, 4, 6), (1,), (0,)),), (View("O", 2, (5, 2, 4), (2,), (1,)),))


SITES = [two_by_two(GL(4)), heads(GL(4, (2,))), two_by_two(PositiveScaling(4)), heads(PositiveScaling(4, (2,)))]
IDS = [f"{type(site.group).__name__}-{site.name}" for site in SITES]
MATRICES = SITES[:2]
FORMULAS = [balanced, principal_axes, whitened_producers, whitened_consumers, partial(principal_axes, exponent=0.75)]
Formula = Callable[[Site, Params], Tensor]


def draw(generator: torch.Generator, *tasks: int) -> Params:
    """Weights of which the units differ by orders of magnitude."""
    params = {n: torch.randn(*tasks, *s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    spread = torch.tensor([1e-2, 1.0, 3.0, 1e2], dtype=torch.float64)
    return {**params, "V": spread[:, None] * params["V"], "Q": spread.repeat(2)[:, None] * params["Q"]}


def sides(site: Site, params: Params) -> tuple[Tensor, Tensor]:
    """V (..., k, d) and U (..., m, k), all producers and all consumers together."""
    v = torch.cat([view.matrix(params[view.name]) for view in site.producers], dim=-1)
    u = torch.cat([view.matrix(params[view.name]) for view in site.consumers], dim=-1)
    return v, u.mT


def grams(site: Site, params: Params) -> tuple[Tensor, Tensor]:
    """V V^T and U^T U, or for scalings their diagonals."""
    v, u = sides(site, params)
    if isinstance(site.group, PositiveScaling):
        return v.square().sum(-1), u.square().sum(-2)
    return v @ v.mT, u.mT @ u


def one(site: Site, like: Tensor) -> Tensor:
    return site.group.identity(*like.shape[: like.ndim - len(site.group.algebra_shape)], dtype=like.dtype)


def is_balanced(site: Site, params: Params) -> None:
    laws.assert_close(*grams(site, params), 1e-10)


def has_white_producers(site: Site, params: Params) -> None:
    gram, _ = grams(site, params)
    laws.assert_close(gram, one(site, gram), 1e-10)


def has_white_consumers(site: Site, params: Params) -> None:
    _, gram = grams(site, params)
    laws.assert_close(gram, one(site, gram), 1e-10)


def is_on_axes(site: Site, params: Params, exponent: float = 0.5, scale: float = 1.0) -> None:
    v, u = sides(site, params)
    if isinstance(site.group, PositiveScaling):
        values = v.norm(dim=-1) * u.norm(dim=-2)
        laws.assert_close(v.norm(dim=-1), values**exponent / scale, 1e-10)
        return
    values = torch.linalg.svdvals(u @ v)[..., : site.group.k]
    laws.assert_close(v @ v.mT, torch.diag_embed(values ** (2 * exponent)) / scale**2, 1e-10)
    laws.assert_close(u.mT @ u, torch.diag_embed(values ** (2 - 2 * exponent)) * scale**2, 1e-10)


PROMISES = [
    (balanced, is_balanced),
    (principal_axes, is_on_axes),
    (partial(principal_axes, exponent=0.75, scale=2.0), partial(is_on_axes, exponent=0.75, scale=2.0)),
    (whitened_producers, has_white_producers),
    (whitened_consumers, has_white_consumers),
]


def product(site: Site, params: Params) -> Tensor:
    """U V, or for scalings the product of every unit alone."""
    v, u = sides(site, params)
    return torch.einsum(
        "...mk,...kd->...kmd" if isinstance(site.group, PositiveScaling) else "...mk,...kd->...md", u, v
    )


@pytest.mark.parametrize("site", SITES, ids=IDS)
@pytest.mark.parametrize(("formula", "promise"), PROMISES, ids=lambda f: getattr(f, "__name__", "uneven"))
def test_a_gauge_keeps_its_promise_and_the_product(
    site: Site, formula: Formula, promise: Callable[[Site, Params], None], generator: torch.Generator
) -> None:
    params = draw(generator, 3)
    g = formula(site, params)
    assert g.shape == (3, *site.group.algebra_shape) and g.dtype == torch.float64
    moved = site.act(params, g)
    promise(site, moved)
    laws.assert_close(product(site, moved), product(site, params), 1e-10)
    laws.assert_close(formula(site, moved), one(site, g), 1e-9)
    laws.must_fail(promise, site, params)
    laws.must_fail(promise, site, site.act(moved, site.group.sample(3, generator=generator, dtype=torch.float64)))


@pytest.mark.parametrize("site", SITES, ids=IDS)
@pytest.mark.parametrize("formula", FORMULAS)
def test_problems_side_by_side_are_problems_alone(site: Site, formula: Formula, generator: torch.Generator) -> None:
    params = draw(generator, 2, 3)
    together = formula(site, params)
    for i, j in ((0, 0), (1, 2)):
        alone = formula(site, {name: p[i, j] for name, p in params.items()})
        laws.assert_close(alone[None], together[i, j][None], 1e-10)


@pytest.mark.parametrize("site", MATRICES, ids=IDS[:2])
def test_the_balanced_element_is_a_geometric_mean(site: Site, generator: torch.Generator) -> None:
    def power(matrix: Tensor, exponent: float) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.unsqueeze(-2) ** exponent) @ vectors.mT

    params = draw(generator, 3)
    p, c = grams(site, params)
    root = power(p, 0.5)
    square = power(p, -0.5) @ power(root @ c @ root, 0.5) @ power(p, -0.5)
    tolerance = tolerances.solved(site.group.k, float(torch.linalg.cond(p).max()))
    laws.assert_close(balanced(site, params), power(square, 0.5), tolerance)
    laws.must_fail(laws.assert_close, balanced(site, params), power(square, 0.49), 1e-3)


@pytest.mark.parametrize("site", SITES, ids=IDS)
def test_no_weights_on_the_orbit_are_smaller_than_balanced_ones(site: Site, generator: torch.Generator) -> None:
    def size(params: Params) -> Tensor:
        return sum(m.square().sum((-2, -1)) for m in sides(site, params))

    params = draw(generator, 3)
    least = site.act(params, balanced(site, params))
    assert bool((size(least) < 0.9 * size(params)).all())
    for length in (1e-3, 0.1, 1.0):
        for _ in range(20):
            near = site.group.sample(3, generator=generator, size=length, dtype=torch.float64)
            assert bool((size(site.act(least, near)) > size(least)).all())


@pytest.mark.parametrize("formula", FORMULAS)
def test_units_without_weights_on_one_side_stay(formula: Formula, generator: torch.Generator) -> None:
    site, params = SITES[2], draw(generator, 3)
    for name in ("V", "b"):
        params[name][0, 1] = 0
    for name in ("U", "W"):
        params[name][1, :, 2] = 0
    g = formula(site, params)
    assert bool(torch.isfinite(g).all() and (g > 0).all())
    sees_producers, sees_consumers = formula is not whitened_consumers, formula is not whitened_producers
    assert bool(g[0, 1] == 1) == sees_producers and bool(g[1, 2] == 1) == sees_consumers
    assert int((g == 1).sum()) == sees_producers + sees_consumers


@pytest.mark.parametrize("site", MATRICES, ids=IDS[:2])
@pytest.mark.parametrize("formula", FORMULAS)
def test_what_has_no_full_rank_has_no_element_and_spoils_no_other(
    site: Site, formula: Formula, generator: torch.Generator
) -> None:
    params = draw(generator, 4)
    expected = formula(site, params)
    u, v = site.consumers[0].name, site.producers[0].name
    params[u][0], params[v][0] = 0, 0
    params["W"][0], params["b"][0] = 0, 0
    params[u][1].view(5, -1)[:, 3] = params[u][1].view(5, -1)[:, 2]
    params["W"][1, :, 3] = params["W"][1, :, 2]
    params[v][2, 1] = torch.nan
    params[u][2, 1] = torch.nan
    g = formula(site, params)
    lost = g.isnan().flatten(1).any(1)
    assert lost.tolist() == [True, formula is not whitened_producers, True, False]
    assert bool((g.isnan().all((-2, -1)) == g.isnan().any((-2, -1))).all()), "all of a block or nothing"
    assert torch.equal(g[3], expected[3])


@pytest.mark.parametrize("formula", FORMULAS)
def test_factors_thinner_than_their_rank_have_no_element(formula: Formula, generator: torch.Generator) -> None:
    site = Site("thin", GL(4), (View.along("A", (4, 2), 0),), (View.along("C", (2, 4), 1),))
    assert bool(formula(site, draw(generator, 3)).isnan().all())


@pytest.mark.parametrize("formula", FORMULAS)
def test_elements_come_in_the_precision_of_the_parameters(formula: Formula, generator: torch.Generator) -> None:
    for site in SITES:
        params = draw(generator, 3)
        g = formula(site, {name: p.float() for name, p in params.items()})
        assert g.dtype == torch.float32
        laws.assert_close(g.double(), formula(site, params), 1e-4)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("group", [Orthogonal(4), FirstOrder(4)])
def test_groups_without_a_formula_are_refused(formula: Formula, group: GL, generator: torch.Generator) -> None:
    with pytest.raises(UserError, match=f"no gauge has a formula in {type(group).__name__}, the group of site 'pair'"):
        formula(two_by_two(group), draw(generator, 3))


def test_a_site_with_one_side_only_is_refused(generator: torch.Generator) -> None:
    site = Site("open", GL(4), (View.along("V", (4, 7), 0),), ())
    with pytest.raises(UserError, match="site 'open' has no consumers, so no gauge is defined there"):
        balanced(site, draw(generator, 3))


def test_gauges_have_names() -> None:
    assert {name: gauge.element for name, gauge in GAUGES.items()} == {
        "balanced": balanced,
        "whitened": whitened_producers,
        "principal_axes": principal_axes,
    }


@pytest.mark.parametrize("n", [3, 6, 20])
def test_whitened_activations(n: int, generator: torch.Generator) -> None:
    h = torch.randn(4, 6, n, generator=generator, dtype=torch.float64)
    group = GL(6)
    algebra = whitened_activations(group, h)
    g = group.exp(algebra)
    rounding = tolerances.solved(6) + tolerances.exponential(6, float(algebra.norm(dim=(1, 2)).max()))
    gh, tolerance = group.apply(g, h), 2 * rounding * laws.spread(g)
    if n >= 6:
        laws.assert_close(gh @ gh.mT, torch.eye(6).double().expand(4, 6, 6), tolerance)
        laws.must_fail(laws.assert_close, h @ h.mT, torch.eye(6).double().expand(4, 6, 6), 1e-3)
    else:  # on the span of h
        laws.assert_close(gh.mT @ gh, torch.eye(n).double().expand(4, n, n), tolerance)


def test_whitened_scalings_give_every_unit_norm_one(generator: torch.Generator) -> None:
    h = torch.randn(4, 6, 9, generator=generator, dtype=torch.float64)
    group = PositiveScaling(6)
    gh = group.apply(group.exp(whitened_activations(group, h)), h)
    assert torch.allclose(gh.norm(dim=2), torch.ones(4, 6).double(), rtol=1e-12)


@pytest.mark.parametrize("group", [GL(6), PositiveScaling(6)], ids=str)
def test_activations_that_are_zero_or_not_finite_are_left_alone(
    group: GL | PositiveScaling, generator: torch.Generator
) -> None:
    h = torch.randn(3, 6, 9, generator=generator, dtype=torch.float64)
    expected = whitened_activations(group, h)
    h[1] = 0
    found = whitened_activations(group, h)
    assert not found[1].any() and torch.equal(found[[0, 2]], expected[[0, 2]])
    h[1, 0, 0] = torch.nan
    laws.assert_close(whitened_activations(group, h)[[0, 2]], expected[[0, 2]], 1e-12)


def test_whitening_is_refused_where_no_element_whitens(generator: torch.Generator) -> None:
    site = Functions("booth").sample(1, generator).symmetry.sites[0]
    with pytest.raises(TypeError, match="no element of Orthogonal whitens activations"):
        whitened_activations(site.group, torch.ones(1, 2, 1))
