"""Dimensions of orbits, fibres and level sets against what is known, and the experiment."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.lab.progress import slug
from experiments.transitivity import run as transitivity
from experiments.transitivity.networks import CASES, Case
from experiments.transitivity.orbit_dimensions import dimensions, numerical_rank, orbit_tangents, output_jacobian
from experiments.transitivity.report import markdown, verdict
from meta_teleport.errors import UserError
from meta_teleport.models import MLP
from meta_teleport.params import Params, flatten
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.symmetry import Symmetry

NAMED = {case.key: case for case in CASES}


def drawn(model: torch.nn.Module, generator: torch.Generator) -> Params:
    return {
        name: torch.randn(1, *p.shape, generator=generator, dtype=torch.float64) for name, p in model.named_parameters()
    }


def of(widths: tuple[int, ...], activation: str, actions: tuple[str, ...], n: int, generator: torch.Generator) -> Any:
    model = MLP(widths, activation).double()
    inputs = [torch.randn(k, widths[0], generator=generator, dtype=torch.float64) for k in (n, 100)]
    symmetries = [mlp_symmetry(model, action) for action in actions]
    return dimensions(model, symmetries, drawn(model, generator), *inputs)


@pytest.mark.parametrize(("m", "k", "d"), [(4, 3, 6), (4, 6, 3), (3, 3, 3), (3, 4, 6), (6, 4, 3), (2, 4, 7), (7, 2, 5)])
def test_two_linear_layers_of_full_rank(m: int, k: int, d: int, generator: torch.Generator) -> None:
    found = of((d, k, m), "identity", ("linear",), 30, generator)
    low, high, rank = min(m, d), max(m, d), min(m, k, d)
    assert found.orbit == k * k - max(0, k - m) * max(0, k - d)
    assert found.fibre == found.function == k * (m + d) - rank * (m + d - rank)
    assert found.fibre - found.orbit == ((k - low) * (high - k) if low < k < high else 0)
    assert found.gap > 1e9 and found.outside < 1e-12 and found.level == k * (m + d) - 1


def test_factors_of_full_rank_lie_on_one_orbit(generator: torch.Generator) -> None:
    """With k <= min(m, d), any two factorizations of one product: g = V' V^+."""
    u, v = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (3, 6)))
    turned = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    other_u, other_v = u @ turned, torch.linalg.solve(turned, v)
    g = other_v @ torch.linalg.pinv(v)
    assert torch.allclose(g @ v, other_v) and torch.allclose(torch.linalg.solve(g.mT, u.mT).mT, other_u)


def test_factors_between_the_widths_need_not(generator: torch.Generator) -> None:
    """With m < k < d, another row space that contains that of the product: no g takes one V to the other."""
    u, v = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (4, 6)))
    null = torch.linalg.svd(u).Vh[3:].mT
    other = v + null @ torch.randn(1, 6, generator=generator, dtype=torch.float64)
    assert torch.allclose(u @ other, u @ v)
    g = other @ torch.linalg.pinv(v)
    assert not torch.allclose(g @ v, other)


def test_a_singular_factor_has_a_smaller_orbit(generator: torch.Generator) -> None:
    model = MLP((6, 3, 4), "identity").double()
    params = drawn(model, generator)
    params["layers.0.weight"][:, 0] = params["layers.1.weight"][:, :, 0] = 0
    inputs = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    found = dimensions(model, [mlp_symmetry(model, "linear")], params, inputs, inputs)
    assert found.orbit == 8 < 9 < found.fibre


@pytest.mark.parametrize("widths", [(6, 5, 3), (6, 5, 4, 3), (4, 8, 2)])
def test_scalings_have_one_dimension_per_unit(widths: tuple[int, ...], generator: torch.Generator) -> None:
    found = of(widths, "leaky_relu", ("scaling",), 40, generator)
    assert found.orbit == sum(widths[1:-1]) == found.function <= found.fibre
    assert found.outside < 1e-12


def test_a_bounded_activation_leaves_no_continuous_symmetry(generator: torch.Generator) -> None:
    found = of((6, 5, 3), "tanh", ("pseudo_inverse",), 5, generator)
    assert (found.function, found.fibre, found.orbit) == (0, 45 - 15, 25)
    assert found.outside < 1e-12


@pytest.mark.parametrize("widths", [(6, 5, 3), (6, 5, 5, 3)])
def test_the_two_actions_together_fill_the_fibre_on_a_batch(
    widths: tuple[int, ...], generator: torch.Generator
) -> None:
    alone = [of(widths, "leaky_relu", (action,), 5, generator) for action in ("general_linear", "pseudo_inverse")]
    both = of(widths, "leaky_relu", ("general_linear", "pseudo_inverse"), 5, generator)
    assert max(found.orbit for found in alone) < both.orbit == both.fibre


def test_batches_that_an_action_cannot_carry_take_it_out_of_the_fibre(generator: torch.Generator) -> None:
    for action, limit in (("general_linear", 6), ("pseudo_inverse", 5)):
        assert of((6, 5, 3), "leaky_relu", (action,), limit, generator).outside < 1e-10
        assert of((6, 5, 3), "leaky_relu", (action,), limit + 3, generator).outside > 1e-3


def test_one_orbit_fills_the_level_set_of_one_number(generator: torch.Generator) -> None:
    found = of((6, 5, 1), "leaky_relu", ("general_linear", "pseudo_inverse"), 1, generator)
    assert found.orbit == found.fibre == found.level == 34
    assert of((6, 5, 1), "leaky_relu", ("general_linear", "pseudo_inverse"), 2, generator).orbit == 33


@pytest.mark.parametrize("name", ["identity 6-3-4, GL", "leaky_relu 6-5-3, (a) + (b)", "attention, found"])
def test_tangents_are_differences_along_the_orbit(name: str, generator: torch.Generator) -> None:
    case = NAMED[name]
    params, symmetry = drawn(case.build(), generator), case.symmetries()[0]
    inputs = case.batch(0, params)
    tangents, size, at = orbit_tangents(symmetry, params, inputs), 1e-5, 0
    for i, site in enumerate(symmetry.sites):
        for j in range(torch.Size(site.group.algebra_shape).numel()):
            ends = [flatten(symmetry.flow(params, one(symmetry, i, j, s), inputs[None])) for s in (size, -size)]
            assert torch.allclose(tangents[at], (ends[0] - ends[1])[0] / (2 * size), atol=1e-7, rtol=1e-6)
            at += 1
    assert at == len(tangents) > 8


def one(symmetry: Symmetry, i: int, j: int, size: float) -> list[Tensor]:
    algebra = [torch.zeros(1, *site.group.algebra_shape, dtype=torch.float64) for site in symmetry.sites]
    algebra[i].view(-1)[j] = size
    return algebra


def test_the_jacobian_of_the_outputs_is_that_of_differences(generator: torch.Generator) -> None:
    model = MLP((3, 4, 2), "tanh", bias=True).double()
    params, x = drawn(model, generator), torch.randn(5, 3, generator=generator, dtype=torch.float64)
    jacobian, step = output_jacobian(model, params, x), 1e-6
    assert jacobian.shape == (10, 26)
    direction = torch.randn(26, generator=generator, dtype=torch.float64)
    sizes = [p.numel() for p in params.values()]
    ends = []
    for sign in (1, -1):
        pieces = (sign * step * direction).split(sizes)
        moved = {name: p[0] + d.view(p.shape[1:]) for (name, p), d in zip(params.items(), pieces, strict=True)}
        ends.append(torch.func.functional_call(model, moved, (x,)).flatten())
    assert torch.allclose(jacobian @ direction, (ends[0] - ends[1]) / (2 * step), atol=1e-8)


def test_ranks_and_their_gaps(generator: torch.Generator) -> None:
    values = torch.diag(torch.tensor([2.0, 1e-3, 1e-6, 1e-14, 0.0], dtype=torch.float64))
    rank = numerical_rank(values)
    assert rank.value == 3 and rank.gap == pytest.approx(1e8, rel=1e-6)
    assert numerical_rank(torch.zeros(3, 4)).value == numerical_rank(torch.zeros(0, 4)).value == 0
    square = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    assert numerical_rank(square).value == 3


def test_verdicts() -> None:
    row: dict[str, Any] = {"actions": ["(a)"], "level": 30, "fibre": 20, "function": 5, "orbit": 20}
    assert verdict(row) == "the fibre on the batch"
    assert verdict({**row, "orbit": 18}) == "no: 2 of 20 dimensions of the fibre are missing"
    assert verdict({**row, "fibre": 30, "orbit": 30}) == "the level set"
    assert verdict({**row, "actions": ["GL"], "orbit": 5}) == "the fibre of the function"
    assert verdict({**row, "actions": ["GL"], "orbit": 4}) == "no: 1 of 5 dimensions of the fibre are missing"


SMALL = [Case("small", lambda: MLP((3, 2, 2), "identity"), ("GL",), (3,)), NAMED["leaky_relu 6-5-3, (b)"]]


def test_training_lowers_the_loss_and_finished_networks_are_kept(tmp_path: Path) -> None:
    keep = tmp_path / "progress"
    expected = transitivity.studies(SMALL, 2, 60, keep)
    for initial, trained in zip(expected[0:2] + expected[4:6], expected[2:4] + expected[6:8], strict=True):
        assert (initial["when"], trained["when"]) == ("initial", "trained")
        assert trained["loss"] < initial["loss"]
    first, second = (keep / f"{slug(case.key)}.json" for case in SMALL)
    content = json.loads(first.read_text())
    content["found"]["rows"][0]["loss"] = -1.0
    first.write_text(json.dumps(content))
    second.unlink()
    resumed = transitivity.studies(SMALL, 2, 60, keep)
    assert resumed[0]["loss"] == -1.0 and resumed[1:] == expected[1:]
    with pytest.raises(UserError) as error:
        transitivity.studies(SMALL, 2, 61, keep)
    assert str(error.value) == f"{first} belongs to a run with other steps: delete it, or choose another --out"


def test_every_case_has_a_name_of_its_own_and_fits_its_batch() -> None:
    assert len(NAMED) == len(CASES) >= 25
    for case in CASES:
        params = {name: p[None].detach() for name, p in case.build().named_parameters()}
        inputs = case.batch(0, params)
        assert inputs.shape[1:] == case.shape and case.symmetries()
        for symmetry in case.symmetries():
            symmetry.require_exact(params, len(inputs), "nothing")


def test_the_experiment(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.transitivity.run", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    results = json.loads((tmp_path / "transitivity.json").read_text())
    assert results["smoke"] and results["seeds"] == 2 and "torch" in results["provenance"]["versions"]
    rows = results["rows"]
    assert len(rows) == 4 * 2 * 2 and all(row["gap"] > 1e6 and row["outside"] < 1e-9 for row in rows)
    found = {(row["network"], row["actions"][0]): row for row in rows}
    assert found["identity 6-3-4", "GL"]["orbit"] == 9
    assert done.stdout == (tmp_path / "transitivity.md").read_text() + "\n" == markdown(rows) + "\n"
    assert "finished" not in done.stderr and done.stderr.count(" s, about ") == 4
    for suffix in (".png", ".pdf"):
        assert (tmp_path / "transitivity").with_suffix(suffix).stat().st_size > 5_000
