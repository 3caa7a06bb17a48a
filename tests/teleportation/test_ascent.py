"""Ascent along the orbit."""

import laws
import pytest
import torch
from cases import Case, build
from torch import Tensor

from meta_teleport.params import Params, rows
from meta_teleport.symmetry.groups import PositiveScaling
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.tasks.functions import Functions
from meta_teleport.teleportation.ascent import ascend
from meta_teleport.teleportation.objectives import Loss, Objective, gradient_norm

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


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("objective", [gradient_norm, lambda loss, params: gradient_norm(loss, params)])
def test_lowering_and_the_elements_of_the_way(case: Case, objective: Objective) -> None:
    instance = build(case)

    def loss(params: Params) -> Tensor:
        return laws.loss(instance, params)

    symmetry, prepared = instance.symmetry, instance.symmetry.prepare(instance.inputs)
    options = {"objective": objective, "direction": "lower", "steps": 4, "size": 0.05}
    result = ascend(symmetry, instance.params, prepared, loss, **options)
    assert bool((result.after < 0.999 * result.before).all()) and bool((result.length > 0).all())
    laws.assert_close(result.after, squared_norm(loss, result.params), 1e-6)
    for site, g, inverse in zip(symmetry.sites, result.elements, result.inverses, strict=True):
        laws.assert_close(site.group.inverse(g), inverse, 1e-10)
    if case.action in ("scaling", "linear"):
        laws.params_close(symmetry.act(instance.params, result.elements), result.params, 1e-10)


@pytest.mark.parametrize("case", [c for c in CASES if c.action in ("scaling", "linear")], ids=str)
@pytest.mark.parametrize("size", [0.1, 1.0])
def test_moving_the_gradient_is_moving_the_parameters(case: Case, size: float) -> None:
    """The search along exact sites, which never evaluates the loss on its way, goes the way of the general one."""
    instance, evaluations = build(case), 0

    def loss(params: Params) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return laws.loss(instance, params)

    found = ascend(instance.symmetry, instance.params, None, loss, steps=6, size=size)
    assert evaluations == 2
    general = ascend(
        instance.symmetry, instance.params, None, loss, objective=lambda f, p: gradient_norm(f, p), steps=6, size=size
    )
    assert evaluations == 2 + 7
    laws.params_close(found.params, general.params, 1e-8)
    laws.assert_close(found.after, general.after, 1e-8)
    assert torch.equal(found.length, general.length)
    laws.must_fail(laws.params_close, found.params, instance.params, 1e-3)


def test_a_loss_that_the_sites_do_not_leave_alone_is_not_made_worse() -> None:
    """With a penalty on the weights the gradient does not move as the search along exact sites predicts."""
    instance = build(CASES[3])

    def loss(params: Params) -> Tensor:
        return laws.loss(instance, params) + 30 * sum(rows(p).square().sum(1) for p in params.values())

    for direction, sign in (("raise", 1), ("lower", -1)):
        result = ascend(instance.symmetry, instance.params, None, loss, direction=direction, steps=5, size=3.0)
        assert bool((sign * result.after >= sign * result.before).all())
        laws.assert_close(result.after, squared_norm(loss, result.params), 1e-10)
        still = result.length == 0
        assert all(torch.equal(p[still], instance.params[name][still]) for name, p in result.params.items())
    assert bool(still.any())


@pytest.mark.parametrize("peak", [0.06, 0.13, 0.9])
def test_steps_are_halved_until_one_comes_nearer_to_the_peak(peak: float) -> None:
    """One unit, scaled by e^t: a step s from t = 0 comes nearer if it is below twice the distance of the peak."""
    view = View.along("w", (1, 1), 0)
    symmetry = Symmetry((Site("unit", PositiveScaling(1), (view,), (View.along("u", (1, 1), 1),)),))
    params = {"w": torch.ones(1, 1, 1, dtype=torch.float64), "u": torch.ones(1, 1, 1, dtype=torch.float64)}

    def height(loss: Loss, params: Params) -> Tensor:
        return -(params["w"].flatten(1).sum(1).log() - peak).abs()

    trials = next(n for n in range(10) if 0.5**n < 2 * peak) + 1
    result = ascend(symmetry, params, None, lambda p: p["w"].sum((1, 2)), objective=height, steps=trials, size=1.0)
    assert float(result.length) == 0.5 ** (trials - 1)
    assert float(result.params["w"].log()) == pytest.approx(0.5 ** (trials - 1))
