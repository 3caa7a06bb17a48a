"""Low-rank factorisation: what is drawn, the two losses, the symmetry, refusals."""

from dataclasses import replace
from typing import Any

import laws
import pytest
import tolerances
import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.symmetry.groups import FirstOrder
from meta_teleport.tasks.factorization import Factorization, FactorizationTasks


def drawn(count: int, generator: torch.Generator, **options: Any) -> FactorizationTasks:
    return Factorization(**options).sample(count, generator, dtype=torch.float64)


def steps(tasks: FactorizationTasks, number: int = 0) -> Tensor:
    return torch.full((tasks.count,), number)


def optimum(tasks: FactorizationTasks) -> Params:
    """Factors of the target, from its singular value decomposition."""
    r = tasks.params["A"].shape[1]
    u, s, v = torch.linalg.svd(tasks.data["target"])
    return {"A": v[:, :r], "B": u[:, :, :r] * s[:, None, :r]}


def test_targets_have_the_rank_and_condition_number_asked_for(generator: torch.Generator) -> None:
    tasks = drawn(5, generator, rank=4, inputs=9, outputs=7, condition=50, anisotropy=20, points=32)
    values = torch.linalg.svdvals(tasks.data["target"])
    assert float((values[:, 4:] / values[:, :1]).max()) < tolerances.solved(9)
    laws.assert_close(values[:, 0] / values[:, 3], torch.full((5,), 50.0).double(), 1e-10)
    laws.assert_close(values[:, 1] / values[:, 2], values[:, 0] / values[:, 1], 1e-10)
    spectrum = torch.linalg.eigvalsh(tasks.data["root"]) ** 2
    laws.assert_close(spectrum[:, -1] / spectrum[:, 0], torch.full((5,), 20.0).double(), 1e-10)
    laws.assert_close(spectrum.mean(1), torch.ones(5).double(), 1e-12)


def test_inputs_and_labels_have_the_moments_asked_for(generator: torch.Generator) -> None:
    tasks = drawn(4, generator, rank=2, inputs=6, outputs=5, points=20_000, noise=0.5)
    x, root = tasks.data["inputs"], tasks.data["root"]
    laws.assert_close(x.mT @ x / 20_000, root @ root, 0.05)
    clean = x @ tasks.data["target"].mT
    assert float(clean.square().mean()) == pytest.approx(1, rel=0.05)
    assert float((tasks.data["labels"] - clean).std()) == pytest.approx(0.5, rel=0.05)


def test_losses_by_hand(generator: torch.Generator) -> None:
    tasks = drawn(3, generator, rank=2, inputs=6, outputs=5, points=12, batch=4, noise=0.1)
    product = tasks.params["B"] @ tasks.params["A"]
    rows = torch.tensor([8, 9, 10, 11])
    x = tasks.data["inputs"][:, rows].mT
    residual = product @ x - tasks.data["labels"][:, rows].mT
    rounding = tolerances.squares(tolerances.multiplied(tasks.params["B"], tasks.params["A"], x), product @ x, residual)
    laws.assert_close(tasks.loss(tasks.params, steps(tasks, 2)), 0.5 * residual.square().sum(1).mean(1), rounding)
    laws.assert_close(tasks.loss(tasks.params, steps(tasks, 5)), tasks.loss(tasks.params, steps(tasks, 2)), rounding)
    laws.must_fail(
        laws.assert_close, tasks.loss(tasks.params, steps(tasks, 3)), tasks.loss(tasks.params, steps(tasks, 2)), 1e-2
    )


def test_the_full_batch_is_the_expectation_of_mini_batches(generator: torch.Generator) -> None:
    state = generator.get_state()
    sampled = drawn(2, generator, rank=2, inputs=4, outputs=4, points=50_000, batch=50_000, anisotropy=5)
    generator.set_state(state)
    exact = drawn(2, generator, rank=2, inputs=4, outputs=4, batch=None, anisotropy=5)
    assert torch.equal(sampled.data["target"], exact.data["target"])
    expected = exact.loss(exact.params, steps(exact))
    laws.assert_close(sampled.loss(exact.params, steps(sampled)), expected, 0.05)
    zero = {name: torch.zeros_like(p) for name, p in exact.params.items()}
    relative = expected / exact.loss(zero, steps(exact))
    laws.assert_close(exact.relative_error(exact.params), relative, 1e-12)
    laws.must_fail(laws.assert_close, sampled.loss(exact.params, steps(sampled)), 1.2 * expected, 0.05)


def test_plain_matrix_factorisation(generator: torch.Generator) -> None:
    tasks = drawn(3, generator, rank=3, inputs=6, outputs=5, anisotropy=1, batch=None)
    error = tasks.params["B"] @ tasks.params["A"] - tasks.data["target"]
    laws.assert_close(tasks.loss(tasks.params, steps(tasks)), 0.5 * error.square().sum((1, 2)), 1e-12)


def test_the_factors_of_the_target_have_no_error(generator: torch.Generator) -> None:
    tasks = drawn(3, generator, points=64)
    best = optimum(tasks)
    inputs = float(torch.linalg.cond(tasks.data["root"]).max())
    target = tasks.data["target"]
    rounding = inputs * (tolerances.multiplied(best["B"], best["A"]) + tolerances.solved(max(target.shape[1:])))
    assert float(tasks.relative_error(best).max()) < rounding**2
    assert float(tasks.loss(best, steps(tasks)).max()) < 1e-20
    assert float(tasks.relative_error(tasks.params).min()) > 0.1
    zero = {name: torch.zeros_like(p) for name, p in tasks.params.items()}
    laws.assert_close(tasks.relative_error(zero), torch.ones(3).double(), tolerances.summed(target[0].numel()))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_every_element_keeps_loss_and_error(missing: float, generator: torch.Generator) -> None:
    tasks = drawn(4, generator, rank=3, inputs=7, outputs=5, points=20, batch=6, missing=missing)
    (site,) = tasks.symmetry.sites
    g = site.group.sample(4, generator=generator, size=2.0, dtype=torch.float64)
    moved = tasks.symmetry.act(tasks.params, [g])
    for measure in (lambda p: tasks.loss(p, steps(tasks, 1)), tasks.relative_error):
        laws.assert_close(measure(moved), measure(tasks.params), 1e-11)
    assert float((moved["A"] - tasks.params["A"]).norm(dim=(1, 2)).min()) > 0.1
    wrong = {**moved, "B": FirstOrder(3).apply_inverse(tasks.params["B"], g)}
    laws.must_fail(laws.assert_close, tasks.relative_error(wrong), tasks.relative_error(tasks.params), 1e-3)


def test_only_observed_labels_count(generator: torch.Generator) -> None:
    state = generator.get_state()
    tasks = drawn(3, generator, rank=2, inputs=6, outputs=5, points=12, batch=4, noise=0.1, missing=0.4)
    generator.set_state(state)
    full = drawn(3, generator, rank=2, inputs=6, outputs=5, points=12, batch=4, noise=0.1)
    seen = tasks.data["observed"] > 0
    assert set(tasks.data["observed"].unique().tolist()) == {0.0, 1 / 0.6}
    assert torch.equal(tasks.data["labels"], full.data["labels"] * seen)
    rows = torch.tensor([4, 5, 6, 7])
    outputs = tasks.outputs(tasks.params, steps(tasks, 1))
    residual = (outputs - full.data["labels"][:, rows])[seen[:, rows]]
    by_hand = 0.5 * residual.square().sum() / 4 / 0.6
    known = tolerances.multiplied(tasks.data["inputs"], tasks.params["A"].mT, tasks.params["B"].mT)
    rounding = tolerances.squares(known, outputs.flatten()[None], residual[None])
    laws.assert_close(tasks.loss(tasks.params, steps(tasks, 1)).sum()[None], by_hand[None], rounding)
    laws.assert_close(tasks.relative_error(tasks.params), full.relative_error(tasks.params), rounding)


def test_missing_labels_leave_the_expected_loss_as_it_is(generator: torch.Generator) -> None:
    state, options = generator.get_state(), {"rank": 2, "inputs": 4, "outputs": 5, "points": 20_000, "batch": 20_000}
    full = drawn(2, generator, **options)
    generator.set_state(state)
    tasks = drawn(2, generator, missing=0.5, **options)
    assert torch.equal(tasks.data["inputs"], full.data["inputs"])
    expected = full.loss(full.params, steps(full))
    laws.assert_close(tasks.loss(tasks.params, steps(tasks)), expected, 0.03)
    unscaled = replace(tasks, data={**tasks.data, "observed": 0.5 * tasks.data["observed"]})
    laws.must_fail(laws.assert_close, unscaled.loss(tasks.params, steps(tasks)), expected, 0.03)
    observed = float((tasks.data["observed"] > 0).double().mean())
    assert observed == pytest.approx(0.5, abs=0.01)


def test_plain_matrix_completion(generator: torch.Generator) -> None:
    tasks = drawn(3, generator, rank=2, inputs=6, outputs=5, anisotropy=1, batch=None, missing=0.3)
    error = tasks.params["B"] @ tasks.params["A"] - tasks.data["target"]
    seen = tasks.data["observed"].mT
    assert 0 < float((seen == 0).double().mean()) < 0.6
    laws.assert_close(tasks.loss(tasks.params, steps(tasks)), 0.5 * (seen * error.square()).sum((1, 2)), 1e-12)
    assert float(tasks.loss(optimum(tasks), steps(tasks)).max()) < 1e-24


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"rank": 9, "inputs": 8}, "rank 9 does not fit 64 x 8: choose 1 to 8"),
    ({"rank": 0}, "rank 0 does not fit 64 x 64: choose 1 to 64"),
    ({"condition": 0.5}, "condition 0.5 and anisotropy 100.0 must both be at least 1"),
    ({"anisotropy": float("nan")}, "condition 100.0 and anisotropy nan must both be at least 1"),
    ({"batch": 33, "points": 32}, "batch 33 does not fit 32 points: choose 1 to 32"),
    ({"noise": -1.0}, "noise -1.0 is not possible here: give noise >= 0, and a batch with noise above 0"),
    ({"noise": 0.1, "batch": None}, "noise 0.1 is not possible here: give noise >= 0, and a batch with noise above 0"),
    ({"missing": 1.0}, "missing 1.0 is no fraction of the labels: choose 0 or more, and less than 1"),
    ({"missing": -0.1}, "missing -0.1 is no fraction of the labels: choose 0 or more, and less than 1"),
]


@pytest.mark.parametrize(("options", "text"), REFUSALS, ids=str)
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as error:
        Factorization(**options)
    assert str(error.value) == text
