"""Objectives against brute force, along the orbit and in a search."""

from collections.abc import Callable
from math import gamma, pi, sqrt

import laws
import pytest
import torch
from cases import Case, Instance, build
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.params import Params, flatten, functional, unflatten
from meta_teleport.symmetry.groups import Permutation, PositiveScaling
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.teleportation.ascent import Direction, ascend
from meta_teleport.teleportation.curvature import kappa, unit_algebra
from meta_teleport.teleportation.objectives import (
    NAMES,
    Curvature,
    Loss,
    Objective,
    Sharpness,
    gradient_norm,
    named,
)

CASES = [
    Case("general_linear", "asinh", True, (6, 7, 5, 4), 4),
    Case("pseudo_inverse", "tanh", False, (4, 8, 5), 3),
    Case("scaling", "relu", True, (4, 5, 6, 3), 9),
]


def convolution() -> tuple[Loss, Params, Symmetry]:
    """A module as users write them: two convolutions, a parameter that nothing uses, one task."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.Flatten()).double()
    model.register_parameter("spare", nn.Parameter(torch.ones(2).double()))
    params = {
        name: torch.randn(1, *p.shape, generator=generator, dtype=torch.float64) for name, p in model.named_parameters()
    }
    x = torch.randn(1, 5, 2, 5, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(1, 5, 8, generator=generator, dtype=torch.float64)
    producers = (View.along("0.weight", (3, 2, 3, 3), 0), View.along("0.bias", (3,), 0))
    site = Site("0", PositiveScaling(3), producers, (View.along("2.weight", (2, 3, 2, 2), 1),))
    f = functional(model)
    return lambda p: 0.1 * (f(p, x) - y).square().flatten(1).sum(1), params, Symmetry((site,))


Setting = tuple[Loss, Params, Symmetry, Tensor | None]


def setting(case: Case | None) -> Setting:
    if case is None:
        return *convolution(), None
    instance = build(case)
    return lambda p: laws.loss(instance, p), instance.params, instance.symmetry, instance.inputs


def test_there_are_cases() -> None:
    assert len(CASES) == len(NAMES) == 3


def evaluate(objective: Objective, loss: Loss, params: Params) -> Tensor:
    return objective(loss, {name: p.detach().requires_grad_() for name, p in params.items()}).detach()


def along(f: Callable[[float], Tensor], h: float) -> Tensor:
    """f'(0) by central differences of order 4."""
    return (f(-2 * h) - 8 * f(-h) + 8 * f(h) - f(2 * h)) / (12 * h)


def test_gradient_norm_is_that_of_finite_differences() -> None:
    loss, params, _ = convolution()
    flat, h = flatten(params), 1e-4
    slopes = []
    for i in range(flat.shape[1]):
        shift = torch.zeros_like(flat)
        shift[:, i] = 1
        slopes.append(along(lambda t, shift=shift: loss(unflatten(flat + t * shift, params)), h))
    expected = torch.stack(slopes).square().sum(0)
    ours = evaluate(gradient_norm, loss, params)
    laws.assert_close(ours, expected, 1e-8)
    laws.must_fail(laws.assert_close, ours.sqrt(), expected, 1e-2)


def quadratic(generator: torch.Generator) -> tuple[Loss, Params, Tensor, Tensor]:
    """L(w) = c + b . w + w^T H w / 2 over two parameters of two tasks, and its gradient and Hessian at w."""
    params = {n: torch.randn(2, *s, generator=generator, dtype=torch.float64) for n, s in (("a", (2, 3)), ("b", (2,)))}
    hessian = torch.randn(2, 8, 8, generator=generator, dtype=torch.float64)
    hessian = hessian @ hessian.mT
    b, w = torch.randn(2, 8, generator=generator, dtype=torch.float64), flatten(params)

    def loss(p: Params) -> Tensor:
        v = flatten(p)
        return 3 + (b * v).sum(1) + 0.5 * torch.einsum("ti,tij,tj->t", v, hessian, v)

    return loss, params, b + torch.einsum("tij,tj->ti", hessian, w), hessian


SCALES = (0.2, 0.5, 1.1)


def test_sharpness_of_a_quadratic(generator: torch.Generator) -> None:
    """On the sphere E d = 0 and E d d^T = I / dim, so that phi = L + mean(t^2) tr(H) / (2 dim)."""
    loss, params, gradient, hessian = quadratic(generator)
    n, count = 8, 1000
    t1, t2 = sum(SCALES) / 3, sum(t * t for t in SCALES) / 3
    trace = hessian.diagonal(dim1=1, dim2=2).sum(1)
    expected = loss(params) + t2 * trace / (2 * n)
    spread = 2 / (n * (n + 2)) * (hessian.square().sum((1, 2)) - trace**2 / n)
    error = ((t1**2 * gradient.square().sum(1) / n + t2**2 / 4 * spread) / count).sqrt()

    def within(found: Tensor, expected: Tensor) -> None:
        assert bool(((found - expected).abs() <= 4 * error).all())

    found = Sharpness(SCALES, count, seed=1)(loss, params)
    within(found, expected)
    laws.must_fail(within, found, loss(params) + t2 * trace / 2)
    laws.must_fail(within, Sharpness(SCALES, count, seed=1, nonnegative=True)(loss, params), expected)


def test_the_published_variant_sees_one_orthant(generator: torch.Generator) -> None:
    """For L = b . w the sphere averages to L(w); directions with entries in [0, 1) do not, and none is negative."""
    params = {"a": torch.zeros(1, 3, dtype=torch.float64), "b": torch.zeros(1, 2, 2, dtype=torch.float64)}
    seen = []

    def loss(p: Params) -> Tensor:
        seen.append(flatten(p))
        return flatten(p).sum(1)

    published, sphere = Sharpness((0.5,), 2000, nonnegative=True), Sharpness((0.5,), 2000)
    # the mean of sum(u) / |u| over the cube [0, 1)^7
    u = torch.rand(100_000, 7, generator=generator, dtype=torch.float64)
    drawn = 0.5 * u.sum(1) / u.norm(dim=1)
    found = published(loss, params)
    assert bool((found - drawn.mean()).abs() <= 4 * drawn.std() / sqrt(2000))
    assert all(bool((p >= 0).all()) for p in seen)
    assert torch.allclose(torch.cat(seen).norm(dim=1), torch.full((2000,), 0.5).double())
    assert bool(sphere(loss, params).abs() <= 4 * 0.5 / sqrt(2000))
    assert bool((torch.cat(seen[2000:]) < 0).any())


def test_the_sphere_is_uniform(generator: torch.Generator) -> None:
    """E |d_1| = Gamma(n / 2) / (sqrt(pi) Gamma((n + 1) / 2)) for every coordinate of every parameter."""
    params = {"a": torch.zeros(1, 3, dtype=torch.float64), "b": torch.zeros(1, 2, dtype=torch.float64)}
    seen: list[Tensor] = []
    Sharpness((1.0,), 4000)(lambda p: (seen.append(flatten(p)), flatten(p).sum(1))[1], params)
    size = torch.cat(seen).abs()
    expected = gamma(2.5) / (sqrt(pi) * gamma(3))
    assert bool(((size.mean(0) - expected).abs() <= 4 * size.std(0) / sqrt(4000)).all())


def test_curvature_is_the_mean_over_its_elements() -> None:
    instance = build(CASES[0])
    symmetry, name = instance.symmetry, instance.symmetry.sites[1].name
    for sites in (None, (name,)):
        found = Curvature(symmetry, instance.inputs, directions=3, seed=8, sites=sites)(None, instance.params)
        generator = torch.Generator().manual_seed(8)
        drawn = [unit_algebra(symmetry, sites, instance.inputs, generator) for _ in range(3)]
        each = [kappa(symmetry, algebra, instance.inputs, instance.params) for algebra in drawn]
        laws.assert_close(found, torch.stack(each).mean(0), 1e-9)
        laws.must_fail(laws.assert_close, found, each[0], 1e-3)


def test_curvature_leaves_permutations_out() -> None:
    _, params, symmetry = convolution()
    site = symmetry.sites[0]
    both = Symmetry((Site("units", Permutation(3), site.producers, site.consumers), site))
    laws.assert_close(Curvature(both)(None, params), Curvature(symmetry)(None, params), 1e-12)


@pytest.mark.parametrize("case", [*CASES, None], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_objectives_differentiate_along_the_orbit(name: str, case: Case | None, generator: torch.Generator) -> None:
    """The gradient with respect to the algebra, as a search takes it, is the central difference."""
    loss, params, symmetry, inputs = setting(case)
    objective = named(name, symmetry, inputs, generator)
    like = flatten(params)
    way = [torch.randn(len(like), *s.group.algebra_shape, generator=generator).double() for s in symmetry.sites]
    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    algebra = [torch.zeros_like(m, requires_grad=True) for m in way]
    value = objective(loss, symmetry.flow(leaves, algebra, inputs))
    gradients = torch.autograd.grad(value.sum(), algebra)
    ours = torch.stack([(g * m).flatten(1).sum(1) for g, m in zip(gradients, way, strict=True)]).sum(0)
    expected = along(lambda t: evaluate(objective, loss, symmetry.flow(params, [t * m for m in way], inputs)), 2e-5)
    laws.assert_close(ours, expected, 1e-6, scale=value.detach())
    laws.must_fail(laws.assert_close, ours, 2 * expected, 1e-6, scale=value.detach())


@pytest.mark.parametrize("case", [*CASES, None], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", ["raise", "lower"])
def test_a_search_raises_and_lowers_every_objective(name: str, case: Case | None, direction: Direction) -> None:
    loss, params, symmetry, inputs = setting(case)
    prepared = None if inputs is None else symmetry.prepare(inputs)
    objective = named(name, symmetry, prepared, None)
    with torch.no_grad():  # as a caller may have it; the search switches gradients on where it takes them
        result = ascend(symmetry, params, prepared, loss, objective=objective, direction=direction, steps=2)
    before, after = (evaluate(objective, loss, p) for p in (params, result.params))
    laws.assert_close(result.after, after, 1e-6)
    assert bool(((after - before) * (1 if direction == "raise" else -1) > 1e-3 * before).all())
    laws.assert_close(loss(result.params), loss(params), 1e-9)


def instance_loss(instance: Instance) -> Loss:
    return lambda p: laws.loss(instance, p)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_tasks_is_each_task_alone(name: str) -> None:
    instance = build(CASES[0])
    together = evaluate(named(name, instance.symmetry, instance.inputs, None), instance_loss(instance), instance.params)
    for i in range(3):
        one = instance.select(torch.tensor([i]))
        alone = evaluate(named(name, one.symmetry, one.inputs, None), instance_loss(one), one.params)
        laws.assert_close(together[i : i + 1], alone, 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_objectives_are_functions(name: str, device: str) -> None:
    """The same number at every call and for the same generator; another one for another seed where there is chance."""
    instance = build(CASES[2], dtype=torch.float32, device=device)
    loss = instance_loss(instance)
    seeds = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    first, same, other = (named(name, instance.symmetry, instance.inputs, g) for g in seeds)
    values = [evaluate(objective, loss, instance.params) for objective in (first, first, same, other)]
    assert values[0].dtype == torch.float32 and values[0].device == instance.inputs.device
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
    assert torch.equal(values[0], values[3]) == (name == "gradient_norm")
    laws.assert_close(values[3], values[0], 0.5)


def test_what_cannot_be_asked_for() -> None:
    _, _, symmetry = convolution()
    with pytest.raises(UserError, match="unknown objective 'flatness': choose one of gradient_norm, sharpness, curv"):
        named("flatness", symmetry, None, None)
    for wrong in ({"scales": ()}, {"directions": 0}):
        with pytest.raises(UserError, match="sharpness is a mean over scales and directions: give at least one"):
            Sharpness(**wrong)
    with pytest.raises(UserError, match="no site 'layers9' with a Lie algebra: choose among 0"):
        Curvature(symmetry, sites=("0", "layers9"))
    for wrong in ({"sites": ()}, {"directions": 0}):
        with pytest.raises(UserError, match="curvature is a mean over directions at sites with a Lie algebra: give"):
            Curvature(symmetry, **wrong)
    with pytest.raises(UserError, match="curvature is a mean over directions at sites with a Lie algebra: give"):
        Curvature(Symmetry(()))


def test_sharpness_by_itself_looks_from_a_tenth_to_nine_tenths_away(generator: torch.Generator) -> None:
    """At the minimum of ``|w|^2 / 2`` it is the mean of ``t^2 / 2`` over t = 0.1, 0.2, ..., 0.9."""
    params = {"w": torch.zeros(2, 5, dtype=torch.float64)}
    found = Sharpness()(lambda p: p["w"].square().sum(1) / 2, params)
    torch.testing.assert_close(found, torch.full((2,), 19 / 120, dtype=torch.float64))
