"""Orthogonalised directions, alone and as steps of a rule."""

import laws
import pytest
import torch
from torch import Tensor

from meta_teleport.learned.layerwise import Layerwise
from meta_teleport.learned.orthogonal import RIDGE, orthogonalised
from meta_teleport.params import Params, per_task, rows
from meta_teleport.rules.rule import Observation, initialized
from meta_teleport.symmetry.symmetry import Symmetry

SHAPES = {"a": (4, 9), "b": (9, 4), "bias": (7,), "c": (4, 9), "kernel": (5, 2, 3, 3), "row": (1, 6), "one": ()}


@pytest.fixture
def directions(generator: torch.Generator) -> Params:
    return {name: torch.randn(3, *s, generator=generator, dtype=torch.float64) for name, s in SHAPES.items()}


def rotation(k: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(3, k, k, generator=generator, dtype=torch.float64))[0]


def test_singular_values_are_near_one_and_entries_of_mean_square_one(directions: Params) -> None:
    for name, o in orthogonalised(directions).items():
        matrix = o.flatten(2) if o.ndim > 2 else rows(o).unsqueeze(1)
        values = torch.linalg.svdvals(matrix) / max(matrix.shape[1:]) ** 0.5
        assert bool(((values > 0.6) & (values < 1.25)).all()), name
        spread = torch.linalg.svdvals(directions[name].reshape(matrix.shape))
        assert min(matrix.shape[1:]) == 1 or bool((spread[:, 0] > 1.7 * spread[:, -1]).all())


def test_the_ridge_leaves_small_singular_values_small() -> None:
    small = 0.01
    values = torch.tensor([[1.0, small]], dtype=torch.float64)
    found = orthogonalised({"a": torch.diag_embed(values)})["a"].diagonal(dim1=1, dim2=2) / 2**0.5
    expected = small / (small**2 + (RIDGE * values.norm()) ** 2 / 2) ** 0.5
    assert expected < 0.15 and bool(((found[:, 1] - expected).abs() < 0.4 * expected).all()) and bool(found[:, 0] > 0.6)


def test_only_the_direction_counts(directions: Params) -> None:
    found = orthogonalised(directions)
    laws.params_close(orthogonalised({name: 7 * m for name, m in directions.items()}), found, 1e-10)
    laws.must_fail(laws.params_close, orthogonalised({name: -m for name, m in directions.items()}), found, 1e-3)


def test_turning_a_matrix_turns_it(directions: Params, generator: torch.Generator) -> None:
    q, r, stretch = rotation(4, generator), rotation(9, generator), torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    found = orthogonalised(directions)["a"]
    laws.assert_close(orthogonalised({"a": q @ directions["a"] @ r})["a"], q @ found @ r, 1e-10)
    stretched = stretch.unsqueeze(1) * directions["a"]
    laws.must_fail(laws.assert_close, orthogonalised({"a": stretched})["a"], stretch.unsqueeze(1) * found, 1e-2)


def test_many_are_as_each_alone(directions: Params) -> None:
    for name, o in orthogonalised(directions).items():
        laws.assert_close(o, orthogonalised({name: directions[name]})[name], 1e-12)
        laws.assert_close(o[1:2], orthogonalised({name: directions[name][1:2]})[name], 1e-12)


def test_zero_stays_zero_and_breaks_no_derivative(directions: Params) -> None:
    zeros = {name: torch.zeros_like(m).requires_grad_() for name, m in directions.items()}
    found = orthogonalised(zeros)
    assert not any(bool(o.any()) for o in found.values())
    slopes = torch.autograd.grad(sum(o.sum() for o in found.values()), list(zeros.values()))
    assert all(bool(torch.isfinite(slope).all()) for slope in slopes)


def proposed(rule: Layerwise, g: Params) -> Params:
    first = next(iter(g.values()))
    loss, step = first.new_ones(len(first)), torch.zeros(len(first), dtype=torch.long)
    return rule(Observation(g, g, loss, step), rule.init(g, Symmetry(())))[0].update


@pytest.mark.parametrize(("weight", "orthogonal"), [(40.0, True), (-40.0, False)])
def test_a_learned_weight_chooses_between_adam_and_muon(weight: float, orthogonal: bool, directions: Params) -> None:
    """With all weight on the orthogonal factor the first step is that of Muon, with none it is that of Adam: there
    every mean, without its bias, is the gradient."""
    g = {name: directions[name] for name in ("a", "b")}
    with initialized(0):
        rule = Layerwise("muon", epsilon=0.0, start=-1.0).double()
    with torch.no_grad():
        rule.head.bias[-1] = weight
    step = torch.exp(torch.tensor(-1.0, dtype=torch.float64))
    units = {"a": 9, "b": 4}
    expected = {
        name: -step / units[name] ** 0.5 * (orthogonalised(g)[name] if orthogonal else g[name].sign()) for name in g
    }
    laws.params_close(proposed(rule, g), expected, 1e-9)
    wrong = {name: per_task(torch.tensor([1.0, 1.0, 1.1]).double(), f) * f for name, f in expected.items()}
    laws.must_fail(laws.params_close, proposed(rule, g), wrong, 1e-3)
