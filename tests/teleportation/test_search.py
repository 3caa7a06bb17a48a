"""Ascent along the orbit and random elements."""

import laws
import pytest
import torch
from cases import Case, build
from torch import Tensor

from meta_teleport.params import Params
from meta_teleport.symmetry.groups import GL, PositiveScaling
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.regression import Regression
from meta_teleport.teleportation.ascent import ascend
from meta_teleport.teleportation.gauges import whitened
from meta_teleport.teleportation.objectives import Loss, gradient_norm
from meta_teleport.teleportation.search import random_algebra

CASES = [
    Case("general_linear", "leaky_relu", False, (6, 5, 4), 4),
    Case("general_linear", "asinh", True, (6, 7, 5, 4), 4),
    Case("pseudo_inverse", "tanh", False, (4, 8, 5), 3),
    Case("scaling", "relu", True, (4, 5, 6, 3), 9),
    Case("linear", "identity", False, (4, 5, 3), 9),
]


def test_there_are_cases() -> None:
    assert len(CASES) == 5


def squared_norm(loss: Loss, params: Params) -> Tensor:
    """The objective as a number, for comparisons."""
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    return gradient_norm(loss, leaves).detach()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("size", [1e-3, 0.3, 30.0])
def test_ascent_raises_the_gradient_and_keeps_the_loss(case: Case, size: float) -> None:
    instance = build(case)

    def loss(params: Params) -> Tensor:
        return laws.loss(instance, params)

    prepared = instance.symmetry.prepare(instance.inputs)
    steps = 12 if size > 1 else 5
    result = ascend(instance.symmetry, instance.params, prepared, loss, steps=steps, size=size)
    laws.assert_close(result.before, squared_norm(loss, instance.params), 1e-9)
    assert bool((result.after >= result.before).all())
    if size < 1:
        laws.assert_close(result.after, squared_norm(loss, result.params), 1e-6)
        assert bool((result.after > 1.001 * result.before).all())
        assert bool((loss(result.params) / loss(instance.params) - 1).abs().max() < 1e-7)
    assert not any(p.requires_grad for p in result.params.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_direction_of_ascent_is_the_derivative_along_the_orbit(case: Case, generator: torch.Generator) -> None:
    """One small step raises the objective by more than steps of the same size in other directions."""
    instance = build(case)
    symmetry, prepared, size = instance.symmetry, instance.symmetry.prepare(instance.inputs), 1e-4

    def loss(params: Params) -> Tensor:
        return laws.loss(instance, params)

    def rise(algebra: list[Tensor]) -> Tensor:
        moved = symmetry.act(instance.params, symmetry.exp(algebra), prepared)
        return squared_norm(loss, moved) - squared_norm(loss, instance.params)

    result = ascend(symmetry, instance.params, prepared, loss, steps=1, size=size)
    gain = result.after - result.before
    for _ in range(20):
        drawn = [torch.randn(3, *s.group.algebra_shape, generator=generator).double() for s in symmetry.sites]
        norm = sum(t.flatten(1).square().sum(1) for t in drawn).sqrt()
        assert bool((gain > rise([size * t / norm.reshape(-1, *[1] * (t.ndim - 1)) for t in drawn])).all())


def test_ascent_takes_one_size_per_task_and_stays_still_at_size_zero() -> None:
    instance = build(CASES[0])
    size = torch.tensor([0.0, 0.1, 0.1], dtype=torch.float64)
    prepared = instance.symmetry.prepare(instance.inputs)
    result = ascend(instance.symmetry, instance.params, prepared, lambda p: laws.loss(instance, p), size=size)
    assert torch.allclose(result.after[0], result.before[0], rtol=1e-9)
    assert bool((result.after[1:] > result.before[1:]).all())


def test_ascent_on_the_plane_stays_on_the_level_set(generator: torch.Generator) -> None:
    tasks = Functions("booth").sample(16, generator, dtype=torch.float64)
    step = torch.zeros(16, dtype=torch.long)
    result = ascend(tasks.symmetry, tasks.params, tasks.inputs(step), lambda p: tasks.loss(p, step), steps=20)
    laws.assert_close(tasks.loss(result.params, step), tasks.loss(tasks.params, step), 1e-10)
    # ||grad ||h||^2||^2 = 4 h^T J J^T h is largest along the top eigenvector of J J^T, with eigenvalue 9
    highest = 4 * 9 * tasks.loss(tasks.params, step)
    assert bool((result.after <= highest * (1 + 1e-9)).all())
    assert bool((result.after >= 0.9 * highest).float().mean() > 0.8)


def test_random_algebra_keeps_every_norm(generator: torch.Generator) -> None:
    like = (torch.randn(4, 3, 3, generator=generator), torch.randn(4, 5, generator=generator, dtype=torch.float64))
    drawn = random_algebra(like, generator)
    assert len(drawn) == 2
    for a, b in zip(drawn, like, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and not torch.equal(a, b)
        assert torch.allclose(a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1), rtol=1e-6)
    zero = random_algebra((torch.zeros(2, 3, 3),), generator)
    assert torch.equal(zero[0], torch.zeros(2, 3, 3))


def test_gradient_norm_is_that_of_finite_differences(generator: torch.Generator) -> None:
    tasks = Regression(width=3, activation="asinh", data="gaussian", bias=True).sample(
        2, generator, dtype=torch.float64
    )
    step = torch.zeros(2, dtype=torch.long)
    ours = squared_norm(lambda p: tasks.loss(p, step), tasks.params)
    total, h = torch.zeros(2, dtype=torch.float64), 1e-5
    for name, p in tasks.params.items():
        for i in range(p[0].numel()):
            shift = torch.zeros_like(p).flatten(1)
            shift[:, i] = h
            ends = [{**tasks.params, name: p + sign * shift.reshape(p.shape)} for sign in (1, -1)]
            total += ((tasks.loss(ends[0], step) - tasks.loss(ends[1], step)) / (2 * h)) ** 2
    laws.assert_close(ours, total, 1e-8)
    laws.must_fail(laws.assert_close, ours.sqrt(), total, 1e-8)


@pytest.mark.parametrize("n", [3, 6, 20])
def test_whitened_activations(n: int, generator: torch.Generator) -> None:
    h = torch.randn(4, 6, n, generator=generator, dtype=torch.float64)
    group = GL(6)
    gh = group.apply(group.exp(whitened(group, h)), h)
    if n >= 6:
        laws.assert_close(gh @ gh.mT, torch.eye(6).double().expand(4, 6, 6), 1e-9)
        laws.must_fail(laws.assert_close, h @ h.mT, torch.eye(6).double().expand(4, 6, 6), 1e-3)
    else:  # on the span of h
        laws.assert_close(gh.mT @ gh, torch.eye(n).double().expand(4, n, n), 1e-9)


def test_whitened_scalings_give_every_unit_norm_one(generator: torch.Generator) -> None:
    h = torch.randn(4, 6, 9, generator=generator, dtype=torch.float64)
    group = PositiveScaling(6)
    gh = group.apply(group.exp(whitened(group, h)), h)
    assert torch.allclose(gh.norm(dim=2), torch.ones(4, 6).double(), rtol=1e-12)


def test_whitening_is_refused_where_no_element_whitens(generator: torch.Generator) -> None:
    site = Functions("booth").sample(1, generator).symmetry.sites[0]
    with pytest.raises(TypeError, match="no element of Orthogonal whitens activations"):
        whitened(site.group, torch.ones(1, 2, 1))
