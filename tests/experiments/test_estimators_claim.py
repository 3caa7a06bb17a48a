"""The estimators' claim: it runs and resumes on toy sizes, truncation at the horizon is none, gradients are true."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from experiments.estimators.report import life
from experiments.estimators.run import SMOKE
from experiments.estimators.training import (
    ES,
    ESTIMATORS,
    FULL,
    PES,
    TRUNCATED,
    drawn,
    gradients,
    held_out_errors,
    meta_trained,
)
from meta_teleport.meta.unroll import FAILURE_FACTOR


def test_smoke_and_resuming(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.estimators.run", "--smoke", "--out", str(tmp_path)]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "meta-seed" in first.stderr and second.stderr == "" and second.stdout == first.stdout
    results = json.loads((tmp_path / "estimators.json").read_text())
    assert list(results["estimators"]) == list(ESTIMATORS) and results["smoke"]
    assert all(len(row["ends"]) == SMOKE.seeds for row in results["estimators"].values())
    assert (tmp_path / "estimators.png").stat().st_size > 10_000


def test_at_a_window_of_the_horizon_truncated_is_full() -> None:
    whole = replace(SMOKE, window=SMOKE.horizon)
    assert torch.equal(gradients(whole, TRUNCATED, 3), gradients(whole, FULL, 3))
    assert meta_trained(whole, TRUNCATED, 0.1, 3) == meta_trained(whole, FULL, 0.1, 3)
    assert not torch.equal(gradients(SMOKE, TRUNCATED, 3), gradients(SMOKE, FULL, 3))


def test_every_estimator_spends_the_budget() -> None:
    """An antithetic pair trains its tasks twice."""
    for name in ESTIMATORS:
        made = SMOKE.training(name)
        halves = 2 if name in (ES, PES) else 1
        assert made.meta_steps * made.window * made.tasks * halves == SMOKE.budget
    assert SMOKE.training(FULL).window == SMOKE.horizon > SMOKE.training(TRUNCATED).window


def test_full_back_propagation_is_the_derivative_of_what_is_measured() -> None:
    plan, h = replace(SMOKE, lives=1), 1e-4
    tasks = plan.family().sample(plan.tasks, torch.Generator().manual_seed(5), "train", torch.float64)

    def meta_loss(a: float, b: float) -> Tensor:
        return life(held_out_errors(plan.rule((a, b)), tasks, plan.horizon)).log().mean()

    a, b = plan.probe
    expected = [meta_loss(a + h, b) - meta_loss(a - h, b), meta_loss(a, b + h) - meta_loss(a, b - h)]
    # central differences: eps / h of rounding, h^2 of what is left out, both below 1e-7
    torch.testing.assert_close(gradients(plan, FULL, 5)[0], torch.stack(expected) / (2 * h), rtol=0, atol=1e-7)


def test_the_mean_of_pes_is_that_of_full_back_propagation_and_truncation_is_biased() -> None:
    plan = replace(SMOKE, lives=24, pairs=SMOKE.tasks, sigma=1e-3)
    exact, persistent, truncated = (gradients(plan, name, 7) for name in (FULL, PES, TRUNCATED))

    def apart(estimates: Tensor) -> Tensor:
        """Difference of the means, in standard errors."""
        error = (estimates.var(0) + exact.var(0)) / plan.lives
        return (estimates.mean(0) - exact.mean(0)).abs() / error.sqrt()

    assert bool((apart(persistent) < 4).all())
    assert bool((apart(truncated) > 4).any())


def test_a_failed_task_counts_as_failed() -> None:
    tasks = drawn(SMOKE, "held_out", 4)
    errors = held_out_errors(SMOKE.rule((3.0, 3.0)), tasks, SMOKE.horizon)
    assert errors.shape == (SMOKE.horizon + 1, 4)
    assert bool((errors[0] == 1).all()) and bool((errors[1:] == FAILURE_FACTOR).all())
