"""Regression: the paper's problems exactly, the general form, mini-batches, refusals."""

from typing import Any

import laws
import pytest
import tolerances
import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.rules.classical import GradientDescent
from meta_teleport.tasks.regression import Regression, RegressionTasks


def first(tasks: RegressionTasks, step: int = 0) -> Tensor:
    return torch.full((tasks.count,), step)


def test_the_defaults_are_the_papers_problems(generator: torch.Generator) -> None:
    tasks = Regression().sample(50, generator, dtype=torch.float64)
    x, y = tasks.data["inputs"].mT, tasks.data["labels"].mT
    w1, w2 = tasks.params["layers.0.weight"], tasks.params["layers.1.weight"]
    assert len(tasks.params) == 2
    for tensor in (x, y, w1, w2):
        assert tensor.shape == (50, 20, 20)
        assert 0 <= float(tensor.min()) < 1e-3 and 0.999 < float(tensor.max()) <= 1
        assert abs(float(tensor.mean()) - 0.5) < 0.01
        assert abs(float(tensor.var()) - 1 / 12) < 0.002
    z = w1 @ x
    h = torch.where(z > 0, z, 0.1 * z)
    residual = y - w2 @ h
    rounding = tolerances.squares(tolerances.network((w1, w2), (x, h)), w2 @ h, residual)
    laws.assert_close(tasks.loss(tasks.params, first(tasks)), 0.5 * residual.square().sum((1, 2)), rounding)


def test_gradient_descent_reaches_the_measured_means(generator: torch.Generator) -> None:
    tasks = Regression().sample(300, generator)
    rule = GradientDescent(3e-4)
    with torch.no_grad():
        losses, _ = unroll(rule, {}, tasks, start(rule, tasks), 5)
    assert float(losses[0].mean()) == pytest.approx(96500, rel=0.1)
    assert float(losses[4].mean()) == pytest.approx(13790, rel=0.1)


def test_gaussian_problems_have_weights_of_variance_one_over_fan_in(generator: torch.Generator) -> None:
    family = Regression(width=40, inputs=10, points=10, data="gaussian", bias=True)
    tasks = family.sample(50, generator, dtype=torch.float64)
    assert float(tasks.data["inputs"].std()) == pytest.approx(1, rel=0.05)
    assert float(tasks.params["layers.0.weight"].std()) == pytest.approx(10**-0.5, rel=0.05)
    assert float(tasks.params["layers.1.weight"].std()) == pytest.approx(40**-0.5, rel=0.05)
    assert not tasks.params["layers.0.bias"].any()


def test_teacher_labels_come_from_another_network_of_the_same_shape(generator: torch.Generator) -> None:
    state = generator.get_state()
    tasks = Regression(width=5, labels="teacher").sample(3, generator, dtype=torch.float64)
    assert bool((tasks.loss(tasks.params, first(tasks)) > 1e-3).all())
    generator.set_state(state)
    noisy = Regression(width=5, labels="teacher", noise=0.1).sample(200, generator, dtype=torch.float64)
    generator.set_state(state)
    clean = Regression(width=5, labels="teacher").sample(200, generator, dtype=torch.float64)
    difference = noisy.data["labels"] - clean.data["labels"]
    assert float(difference.std()) == pytest.approx(0.1, rel=0.05)


def test_widths_from_width_depth_and_hidden() -> None:
    def widths(**options: Any) -> list[int]:
        model = Regression(**options).model
        return [layer.in_features for layer in model.layers] + [model.layers[-1].out_features]

    assert widths() == [20, 20, 20]
    assert widths(width=7, depth=4) == [7, 7, 7, 7, 7]
    assert widths(width=7, inputs=8, outputs=2) == [8, 7, 2]
    assert widths(hidden=[9, 8], inputs=7, outputs=6) == [7, 9, 8, 6]
    assert Regression(width=7, inputs=8).points == 8


def test_mini_batches_cycle_through_the_data(generator: torch.Generator) -> None:
    tasks = Regression(width=6, points=12, batch=5).sample(2, generator, dtype=torch.float64)
    rows = tasks.data["inputs"]
    for step, index in ((0, [0, 1, 2, 3, 4]), (1, [5, 6, 7, 8, 9]), (2, [10, 11, 0, 1, 2]), (12, [0, 1, 2, 3, 4])):
        assert torch.equal(tasks.inputs(first(tasks, step)).columns, rows[:, index].mT)
    mixed = torch.tensor([1, 2])
    columns = tasks.inputs(mixed).columns
    assert torch.equal(columns[0], rows[0, 5:10].mT)
    assert torch.equal(columns[1], rows[1, [10, 11, 0, 1, 2]].mT)
    by_step = [tasks.loss(tasks.params, first(tasks, i)) for i in (1, 2)]
    assert torch.allclose(tasks.loss(tasks.params, mixed), torch.stack([by_step[0][0], by_step[1][1]]), rtol=1e-12)


def test_full_batches_keep_their_pseudo_inverse(generator: torch.Generator) -> None:
    tasks = Regression(width=6, points=5, bias=True).sample(2, generator, dtype=torch.float64)
    inverse, x = tasks.inputs(first(tasks)).pseudo_inverse, tasks.data["inputs"].mT
    assert inverse is not None
    ones = torch.ones(2, 1, 5, dtype=torch.float64)
    laws.assert_close(inverse @ torch.cat([x, ones], 1), torch.eye(5).double().expand(2, 5, 5), 1e-9)
    assert Regression(width=6, batch=3).sample(2, generator).inputs(torch.zeros(2).long()).pseudo_inverse is not None
    assert Regression(width=6, action="pseudo_inverse").sample(2, generator).data.keys() == {"inputs", "labels"}


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"depth": 1}, "width 20 and depth 1 do not make a network: width >= 1, depth from 2 to 999"),
    ({"width": 0}, "width 0 and depth 2 do not make a network: width >= 1, depth from 2 to 999"),
    ({"batch": 21}, "batch 21 does not fit 20 points: choose 1 to 20"),
    ({"batch": 0}, "batch 0 does not fit 20 points: choose 1 to 20"),
    ({"data": "cauchy"}, "unknown data 'cauchy': choose one of uniform, gaussian"),
    ({"labels": "none"}, "unknown labels 'none': choose one of random, teacher"),
    ({"noise": -1.0}, "noise -1.0 is not possible: give noise >= 0"),
    ({"action": "permutation"},
     "action 'permutation' has no Lie algebra to learn in: choose another one for a task family"),
    ({"points": 30}, "site 'layers.0' keeps the loss on at most 20 points and the batch has 30: use fewer points, a "
     "wider layer, or allow_drift=True (--task.allow_drift true) to accept the drift"),
    ({"hidden": [3, 0]}, "widths [20, 3, 0, 20] do not make an MLP: give at least three positive numbers"),
    ({"activation": "tanh"}, "action 'general_linear' needs an activation that is a bijection of the real line, and "
     "'tanh' is not: use leaky_relu, asinh or identity, or action 'pseudo_inverse'"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "text"), REFUSALS, ids=str)
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as error:
        Regression(**options)
    assert str(error.value) == text


def test_wide_batches_are_accepted_where_asked_for() -> None:
    assert Regression(points=30, allow_drift=True).points == 30
    assert Regression(points=30, batch=20).batch == 20
    assert Regression(points=30, action="scaling").points == 30
