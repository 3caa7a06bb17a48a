"""Regression away from the paper's squares: both signs, more points than inputs, mini-batches, wide and deep networks.

The data-dependent actions keep the loss on the batch of the step and move it elsewhere; scalings keep it everywhere.
"""

from typing import Any

import laws
import pytest
import tolerances
import torch
from torch import Tensor

from meta_teleport.symmetry.site import LayerInput
from meta_teleport.tasks.regression import Regression, RegressionTasks

WIDTH, BATCH = 8, 4
MIXED: dict[str, Any] = {"data": "gaussian", "labels": "teacher", "noise": 0.1}
REGIMES = [(depth, points, bias) for depth in (2, 6) for points in (2 * WIDTH, 8 * WIDTH) for bias in (False, True)]


def drawn(generator: torch.Generator, **options: Any) -> RegressionTasks:
    return Regression(**{"width": WIDTH, **MIXED, **options}).sample(4, generator, dtype=torch.float64)


def steps(tasks: RegressionTasks, number: int = 0) -> Tensor:
    return torch.full((tasks.count,), number)


def elements(tasks: RegressionTasks, generator: torch.Generator) -> list[Tensor]:
    groups = [site.group for site in tasks.symmetry.sites]
    return [group.sample(tasks.count, generator=generator, size=0.7, dtype=torch.float64) for group in groups]


@pytest.mark.parametrize("action", ["general_linear", "pseudo_inverse"])
@pytest.mark.parametrize(("depth", "points", "bias"), REGIMES)
def test_data_dependent_actions_keep_the_loss_on_their_own_batch_alone(
    action: str, depth: int, points: int, bias: bool, generator: torch.Generator
) -> None:
    tasks = drawn(generator, depth=depth, points=points, bias=bias, batch=BATCH, action=action)
    g, step = elements(tasks, generator), steps(tasks, 1)
    moved = tasks.symmetry.act(tasks.params, g, tasks.inputs(step))
    laws.assert_close(tasks.loss(moved, step), tasks.loss(tasks.params, step), 1e-8)
    laws.must_fail(laws.params_close, moved, tasks.params, 1e-2)
    other = steps(tasks, 2)
    laws.must_fail(laws.assert_close, tasks.loss(moved, other), tasks.loss(tasks.params, other), 1e-3)
    laws.must_fail(laws.assert_close, tasks.total_loss(moved), tasks.total_loss(tasks.params), 1e-3)


@pytest.mark.parametrize(("depth", "points", "bias"), REGIMES)
def test_first_order_elements_move_the_loss(depth: int, points: int, bias: bool, generator: torch.Generator) -> None:
    options = {"depth": depth, "points": points, "bias": bias, "batch": BATCH}
    tasks = drawn(generator, group="first_order", allow_drift=True, **options)
    moved = tasks.symmetry.act(tasks.params, elements(tasks, generator), tasks.inputs(steps(tasks)))
    laws.must_fail(laws.assert_close, tasks.loss(moved, steps(tasks)), tasks.loss(tasks.params, steps(tasks)), 1e-3)


@pytest.mark.parametrize("action", ["general_linear", "pseudo_inverse"])
@pytest.mark.parametrize("depth", [2, 6])
def test_whole_batches_as_wide_as_the_layers_or_narrower(action: str, depth: int, generator: torch.Generator) -> None:
    tasks = drawn(generator, depth=depth, points=WIDTH // 2, action=action)
    moved = tasks.symmetry.act(tasks.params, elements(tasks, generator), tasks.inputs(steps(tasks)))
    laws.assert_close(tasks.total_loss(moved), tasks.total_loss(tasks.params), 1e-8)
    wide = drawn(generator, depth=depth, points=2 * WIDTH, action=action, allow_drift=True)
    moved = wide.symmetry.act(wide.params, elements(wide, generator), wide.inputs(steps(wide)))
    laws.must_fail(laws.assert_close, wide.total_loss(moved), wide.total_loss(wide.params), 1e-3)


@pytest.mark.parametrize("batch", [None, BATCH])
@pytest.mark.parametrize(("depth", "points", "bias"), REGIMES)
def test_scalings_keep_the_loss_on_every_point(
    depth: int, points: int, bias: bool, batch: int | None, generator: torch.Generator
) -> None:
    tasks = drawn(generator, depth=depth, points=points, bias=bias, batch=batch, action="scaling")
    assert all(site.exact for site in tasks.symmetry.sites)
    g = elements(tasks, generator)
    moved = tasks.symmetry.act(tasks.params, g)
    for step in (steps(tasks), steps(tasks, 3)):
        laws.assert_close(tasks.loss(moved, step), tasks.loss(tasks.params, step), 1e-11)
    laws.assert_close(tasks.total_loss(moved), tasks.total_loss(tasks.params), 1e-11)
    laws.must_fail(laws.params_close, moved, tasks.params, 1e-2)
    negative = tasks.symmetry.act(tasks.params, [-g[0], *g[1:]])
    laws.must_fail(laws.assert_close, tasks.total_loss(negative), tasks.total_loss(tasks.params), 1e-3)


def test_the_total_loss_is_the_sum_of_the_batches(generator: torch.Generator) -> None:
    tasks = drawn(generator, points=12, batch=4, action="scaling")
    batches = torch.stack([tasks.loss(tasks.params, steps(tasks, number)) for number in range(3)])
    weights, x = [*tasks.params.values()], tasks.data["inputs"].mT
    seen = [x, *tasks.symmetry.hidden(tasks.params, LayerInput(x))]
    outputs = weights[-1] @ seen[-1]
    residual = outputs - tasks.data["labels"].mT
    rounding = tolerances.squares(tolerances.network(weights, seen), outputs, residual)
    laws.assert_close(tasks.total_loss(tasks.params), batches.sum(0), rounding)
    assert torch.equal(tasks.error(tasks.params, steps(tasks, 1)), tasks.total_loss(tasks.params))


@pytest.mark.parametrize("depth", [2, 6])
def test_pre_activations_have_both_signs(depth: int, generator: torch.Generator) -> None:
    tasks = drawn(generator, depth=depth, points=WIDTH, bias=True)
    paper = Regression(width=WIDTH, depth=depth).sample(4, generator, dtype=torch.float64)
    for h, positive in zip(*(t.symmetry.hidden(t.params, t.inputs(steps(t))) for t in (tasks, paper)), strict=True):
        assert 0.2 < float((h > 0).double().mean()) < 0.8
        assert bool((positive > 0).all())


@pytest.mark.parametrize("depth", [2, 6])
@pytest.mark.parametrize("width", [8, 64, 256])
def test_losses_start_at_the_size_of_the_labels_at_every_width_and_depth(
    width: int, depth: int, generator: torch.Generator
) -> None:
    family = Regression(width=width, depth=depth, points=8 * width, batch=width // 2, action="scaling", **MIXED)
    tasks = family.sample(2, generator, dtype=torch.float64)
    zero = {name: torch.zeros_like(p) for name, p in tasks.params.items()}
    ratio = tasks.total_loss(tasks.params) / tasks.total_loss(zero)
    assert bool(((ratio > 0.5) & (ratio < 5)).all()), ratio.tolist()
