"""Deep linear networks: what is drawn, the loss and the error, the symmetry, refusals."""

from dataclasses import replace
from typing import Any

import laws
import pytest
import tolerances
import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.tasks.linear import DeepLinear, DeepLinearTasks


def drawn(count: int, generator: torch.Generator, **options: Any) -> DeepLinearTasks:
    return DeepLinear(**options).sample(count, generator, dtype=torch.float64)


def steps(tasks: DeepLinearTasks, number: int = 0) -> Tensor:
    return torch.full((tasks.count,), number)


def product(tasks: DeepLinearTasks) -> Tensor:
    """The map of the initial weights, by hand."""
    weights = list(tasks.params.values())
    found = weights[0]
    for weight in weights[1:]:
        found = weight @ found
    return found


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_losses_and_errors_by_hand(depth: int, generator: torch.Generator) -> None:
    tasks = drawn(3, generator, width=4, depth=depth, inputs=6, outputs=5, points=12, batch=4, noise=0.1)
    assert len(tasks.params) == depth
    layers = [*tasks.params.values()][::-1]
    laws.assert_close(tasks.matrix(tasks.params), product(tasks), tolerances.multiplied(*layers))
    rows = torch.tensor([8, 9, 10, 11])
    x = tasks.data["inputs"][:, rows].mT
    outputs = product(tasks) @ x
    residual = outputs - tasks.data["labels"][:, rows].mT
    rounding = tolerances.squares(tolerances.multiplied(*layers, x), outputs, residual)
    laws.assert_close(tasks.loss(tasks.params, steps(tasks, 2)), 0.5 * residual.square().sum(1).mean(1), rounding)
    exact = drawn(3, generator, width=4, depth=depth, batch=None)
    error = (product(exact) - exact.data["target"]) @ exact.data["root"]
    laws.assert_close(exact.loss(exact.params, steps(exact)), 0.5 * error.square().sum((1, 2)), 1e-12)
    zero = {name: torch.zeros_like(p) for name, p in exact.params.items()}
    relative = exact.loss(exact.params, steps(exact)) / exact.loss(zero, steps(exact))
    laws.assert_close(exact.relative_error(exact.params), relative, 1e-12)


def test_targets_can_be_reached_and_have_the_condition_number_asked_for(generator: torch.Generator) -> None:
    tasks = drawn(5, generator, width=4, inputs=9, outputs=7, condition=50, points=32)
    u, values, v = torch.linalg.svd(tasks.data["target"])
    assert float((values[:, 4:] / values[:, :1]).max()) < tolerances.solved(9)
    laws.assert_close(values[:, 0] / values[:, 3], torch.full((5,), 50.0).double(), 1e-10)
    middle = torch.eye(4, dtype=torch.float64).expand(5, -1, -1)
    best = dict(zip(tasks.params, (v[:, :4], middle, u[:, :, :4] * values[:, None, :4]), strict=True))
    inputs = float(torch.linalg.cond(tasks.data["root"]).max())
    rounding = inputs * (tolerances.multiplied(*[*best.values()][::-1]) + tolerances.solved(9))
    assert float(tasks.relative_error(best).max()) < rounding**2
    assert float(tasks.relative_error(tasks.params).min()) > 0.1


def test_weights_have_variance_one_over_fan_in(generator: torch.Generator) -> None:
    tasks = drawn(40, generator, width=30, depth=2, inputs=10, points=32)
    assert float(tasks.params["layers.0.weight"].std()) == pytest.approx(10**-0.5, rel=0.05)
    assert float(tasks.params["layers.1.weight"].std()) == pytest.approx(30**-0.5, rel=0.05)


@pytest.mark.parametrize("depth", [2, 4, 6])
@pytest.mark.parametrize(
    "options", [{"batch": 6}, {"batch": None}, {"batch": 6, "noise": 0.1, "missing": 0.3}], ids=str
)
def test_every_element_keeps_loss_and_error(depth: int, options: dict[str, Any], generator: torch.Generator) -> None:
    tasks = drawn(4, generator, width=4, depth=depth, inputs=7, outputs=5, points=20, **options)
    sites, step = tasks.symmetry.sites, steps(tasks, 1)
    assert len(sites) == depth - 1 and all(site.exact for site in sites)
    g = [site.group.sample(4, generator=generator, size=1.5, dtype=torch.float64) for site in sites]
    moved = tasks.symmetry.act(tasks.params, g)
    for measure in (lambda p: tasks.loss(p, step), tasks.relative_error):
        laws.assert_close(measure(moved), measure(tasks.params), 1e-11)
    assert float((moved["layers.0.weight"] - tasks.params["layers.0.weight"]).norm(dim=(1, 2)).min()) > 0.1
    first_order = replace(tasks, network_symmetry=mlp_symmetry(tasks.model, "linear", "first_order"))
    wrong = first_order.symmetry.act(tasks.params, g)
    laws.must_fail(laws.assert_close, tasks.relative_error(wrong), tasks.relative_error(tasks.params), 1e-3)


def test_activations_are_those_between_the_layers(generator: torch.Generator) -> None:
    tasks = drawn(2, generator, width=4, depth=3, points=8, batch=3)
    first, second = tasks.symmetry.hidden(tasks.params, tasks.inputs(steps(tasks)))
    weights, x = [*tasks.params.values()], tasks.data["inputs"][:, :3].mT
    laws.assert_close(first, weights[0] @ x, tolerances.multiplied(weights[0], x))
    outputs = (tasks.params["layers.2.weight"] @ second).mT
    laws.assert_close(tasks.outputs(tasks.params, steps(tasks)), outputs, tolerances.multiplied(*weights[::-1], x))


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"depth": 1}, "width 16 and depth 1 do not make a network: width >= 1, depth from 2 to 999"),
    ({"width": 0}, "width 0 and depth 3 do not make a network: width >= 1, depth from 2 to 999"),
    ({"inputs": 0}, "widths [0, 16, 16, 16] do not make an MLP: give at least three positive numbers"),
    ({"condition": 0.5}, "condition 0.5 and anisotropy 10.0 must both be at least 1"),
    ({"batch": 33, "points": 32}, "batch 33 does not fit 32 points: choose 1 to 32"),
    ({"missing": 1.5}, "missing 1.5 is no fraction of the labels: choose 0 or more, and less than 1"),
]


@pytest.mark.parametrize(("options", "text"), REFUSALS, ids=str)
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as error:
        DeepLinear(**options)
    assert str(error.value) == text
