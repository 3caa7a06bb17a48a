"""The experiment on low-rank factors: its batched training, its adapters, and the whole of it on toy sizes."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import laws
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import meta_teleport as mt
from experiments.factors.adapters import adaptation
from experiments.factors.sweeps import Benchmark, Entry, Sweep, results, sweep
from experiments.factors.teleported_training import (
    Method,
    element,
    observe,
    random_like,
    size_of,
    train,
)
from experiments.lab.intervals import RESAMPLES, median_interval
from experiments.lab.rules import ScaledGradientDescent
from meta_teleport.params import Params
from meta_teleport.rules.classical import Adam, GradientDescent, Momentum
from meta_teleport.symmetry.site import Site
from meta_teleport.tasks.factorization import Factorization, FactorizationTasks
from meta_teleport.tasks.transformer import Sizes
from meta_teleport.teleportation.gauges import Gauge, balanced, principal_axes, whitened_consumers, whitened_producers

SIZES = Sizes(width=8, layers=2, heads=2, rank=2, batch=4, points=16, test=8, pretraining_steps=30)
STEPS = 35


def factors(count: int, generator: torch.Generator) -> FactorizationTasks:
    family = Factorization(rank=3, inputs=6, outputs=5, points=64, batch=8)
    return family.sample(count, generator, dtype=torch.float64)


def rates(*lrs: float) -> Tensor:
    return torch.tensor(lrs, dtype=torch.float64)


class Pair(nn.Module):
    """One pair of factors as a user's module."""

    def __init__(self, params: Params) -> None:
        super().__init__()
        self.A, self.B = (nn.Parameter(params[name][0].clone()) for name in ("A", "B"))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.A.mT @ self.B.mT


def wrapped(tasks: FactorizationTasks, base: type[torch.optim.Optimizer], lr: float, state: str) -> Params:
    """The same training by the library's wrapper around torch's optimizer."""
    model = Pair(tasks.params)
    optimizer = base(model.parameters(), lr=lr, **({"momentum": 0.9} if base is torch.optim.SGD else {}))
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    gauge = Gauge("axes", partial(principal_axes, exponent=0.75, scale=2.0))
    teleported = mt.TeleportedOptimizer(optimizer, model, tasks.symmetry, gauge, 10, state=state)
    for number in range(STEPS):
        teleported.zero_grad()
        loss = tasks.loss({name: p.unsqueeze(0) for name, p in model.named_parameters()}, torch.tensor([number]))
        loss.sum().backward()
        teleported.step()
        decay.step()
    assert [record.accepted for record in teleported.teleports] == [True] * 3
    return {name: p.detach().unsqueeze(0) for name, p in model.named_parameters()}


@pytest.mark.parametrize(("rule", "base"), [(Adam, torch.optim.Adam), (Momentum, torch.optim.SGD)])
@pytest.mark.parametrize("state", ["transport", "reset", "keep"])
def test_training_is_that_of_the_teleported_optimizer(
    rule: Any, base: type[torch.optim.Optimizer], state: Any, generator: torch.Generator
) -> None:
    tasks = factors(1, generator)
    gauge = partial(principal_axes, exponent=0.75, scale=2.0)
    trained = train(tasks, Method(rule, gauge, state), rates(0.01), STEPS, tasks.relative_error)
    laws.params_close(trained.params, wrapped(tasks, base, 0.01, state), 1e-9)
    other = train(tasks, Method(rule, principal_axes, state), rates(0.01), STEPS, tasks.relative_error)
    laws.must_fail(laws.params_close, other.params, trained.params, 1e-2)


def test_a_batch_of_problems_and_step_sizes_is_a_loop_over_them(generator: torch.Generator) -> None:
    tasks, lr, method = factors(3, generator), rates(0.01, 0.03, 0.1), Method(Adam, balanced)
    together = train(tasks, method, lr, STEPS, tasks.relative_error)
    for i in range(3):
        one = torch.tensor([i])
        alone = tasks.select(one)
        single = train(alone, method, lr[one], STEPS, alone.relative_error)
        laws.params_close({name: p[one] for name, p in together.params.items()}, single.params, 1e-8)
        laws.assert_close(together.errors[:, one].mT, single.errors.mT, 1e-8)
    assert together.steps[0] == 0 and together.steps[-1] == STEPS and together.skipped == 0


def test_random_elements_have_the_sizes_asked_for(generator: torch.Generator) -> None:
    tasks = factors(4, generator)
    (site,) = tasks.symmetry.sites
    sizes = [torch.tensor([0.0, 1e-3, 1e-2, 0.1], dtype=torch.float64), torch.ones(4, dtype=torch.float64)]
    draw = random_like(sizes, generator)
    small, large = draw(site, tasks.params), draw(site, tasks.params)
    algebra = small - torch.eye(3, dtype=torch.float64)
    laws.assert_close(algebra.norm(dim=(1, 2))[1:], sizes[0][1:], 0.1)
    assert torch.equal(algebra[0], torch.zeros(3, 3, dtype=torch.float64))
    assert bool((size_of(large) <= 1 + 1e-12).all()) and bool((size_of(large) > 0.3).all())


def test_elements_that_cannot_be_used_are_left_out(generator: torch.Generator) -> None:
    tasks = factors(3, generator)
    (site,) = tasks.symmetry.sites
    b = tasks.params["B"].clone()
    b[0], b[1, 0, 0] = 0, torch.nan
    g, used = element(principal_axes, site, {**tasks.params, "B": b})
    assert used.tolist() == [False, False, True]
    assert torch.equal(g[:2], torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    laws.must_fail(laws.assert_close, g[2:], torch.eye(3, dtype=torch.float64)[None], 1e-2)
    single = {name: p.float() for name, p in tasks.params.items()}

    def stretched(site: Site, params: Params) -> Tensor:
        return torch.diag_embed(torch.tensor([[1.0, 1.0, worst] for worst in (10.0, 1e3, 1e-3)]))

    assert element(stretched, site, single)[1].tolist() == [True, False, False]


def test_scaled_gradient_descent_is_gradient_descent_on_one_factor_with_the_other_whitened(
    generator: torch.Generator,
) -> None:
    tasks, step = factors(3, generator), torch.zeros(3, dtype=torch.long)
    (site,) = tasks.symmetry.sites

    def moved(rule: Any, params: Params) -> Params:
        update = rule(observe(tasks, params, step, step), rule.init(params, tasks.symmetry))[0].update
        return {name: params[name] + update[name] for name in params}

    scaled = moved(ScaledGradientDescent(rates(0.1, 0.2, 0.3)), tasks.params)
    for name, gauge in (("A", whitened_consumers), ("B", whitened_producers)):
        g = gauge(site, tasks.params)
        after = moved(GradientDescent(rates(0.1, 0.2, 0.3)), site.act(tasks.params, g))
        laws.assert_close(site.act(after, torch.linalg.inv(g))[name], scaled[name], 1e-10)
        plain = moved(GradientDescent(rates(0.1, 0.2, 0.3)), tasks.params)
        laws.must_fail(laws.assert_close, plain[name], scaled[name], 1e-3)


def test_adapters_start_as_the_pre_trained_model_and_move_along_their_orbits(generator: torch.Generator) -> None:
    tasks, excess = adaptation(SIZES, 2, seed=0)
    step = torch.zeros(2, dtype=torch.long)
    blocks = [f"blocks.{i}.{name}" for i in (0, 1) for name in ("query", "key", "value", "out", "up", "down")]
    assert [site.parameters for site in tasks.symmetry.sites] == [(f"{name}.A", f"{name}.B") for name in blocks]
    assert bool((excess < 2.5).all())
    assert bool((tasks.excess(tasks.params) > 0.1).all())
    trained = train(tasks, Method(Adam, balanced), torch.full((2,), 0.02), 25, tasks.excess, measured=1)
    assert bool((trained.errors[-1] < trained.errors[0]).all()) and trained.skipped == 0
    elements = [site.group.sample(2, generator=generator, size=0.5) for site in tasks.symmetry.sites]
    moved = tasks.symmetry.act(trained.params, elements)
    laws.assert_close(tasks.outputs(moved, step), tasks.outputs(trained.params, step), 1e-4)
    broken = {**moved, "blocks.0.key.A": trained.params["blocks.0.key.A"]}
    laws.must_fail(laws.assert_close, tasks.outputs(broken, step), tasks.outputs(trained.params, step), 1e-4)


def test_the_best_settings_are_those_of_the_lowest_error_on_the_tuning_problems() -> None:
    methods = [Method(Adam, arguments={"beta2": beta2}) for beta2 in (0.9, 0.999)]
    errors = torch.tensor([[0.3, 0.1, 0.4], [0.5, 0.2, 0.6]]).double()[:, :, None, None].expand(2, 3, 1, 5)
    found = Sweep(Entry(methods, (1.0, 2.0, 3.0)), errors, [0], [0.0, 0.0])
    assert found.best(lambda method: True) == (0, 1)
    assert found.best(lambda method: method.arguments["beta2"] == 0.999) == (1, 1)


def test_results_are_tuned_on_one_set_and_measured_on_the_other(generator: torch.Generator) -> None:
    tuning, fresh = factors(4, generator), factors(5, generator)
    tuning, fresh = (replace(t, params={n: p.float() for n, p in t.params.items()},
                             data={n: p.float() for n, p in t.data.items()}) for t in (tuning, fresh))  # fmt: skip
    benchmark = Benchmark(tuning, fresh, 20, lambda tasks: tasks.relative_error)
    entries = {"Adam": Entry([Method(Adam)], (1e-9, 0.05, 1e9)), "still": Entry([Method(Adam)], (1e-9, 1e9))}
    reports = {name: scopes["all"] for name, scopes in results(entries, benchmark, {"all": lambda method: True})}
    best, still = reports["Adam"], reports["still"]
    assert best["settings"] == {"lr": 0.05} and not best["at_edge"] and still["at_edge"]
    assert (best["ratio"], best["wins"], best["diverged"]) == (1.0, 0.5, 0)
    assert best["tuning"]["median"][2] == 10.0 and len(best["errors"]) == 5
    assert still["errors"] == pytest.approx(fresh.relative_error(fresh.params).tolist(), rel=1e-4)
    low, high = best["ci95"]
    assert min(best["errors"]) <= low <= best["median"] <= high <= max(best["errors"])
    assert still["ratio"] > 1 and still["wins"] == 0
    again = sweep(fresh, Entry([Method(Adam)], (0.05,)), benchmark)
    assert again.final[0, 0].tolist() == pytest.approx(best["errors"], rel=1e-6)


def test_the_interval_of_a_median_narrows_with_more_problems(generator: torch.Generator) -> None:
    few, many = (torch.rand(n, generator=generator, dtype=torch.float64) for n in (10, 1000))
    (low, high), (lower, higher) = (median_interval(x, generator) for x in (few, many))
    assert lower < 0.5 < higher and higher - lower < 0.15 < high - low


def test_the_interval_of_a_median_is_one_of_95_percent(generator: torch.Generator) -> None:
    """Of n resampled problems the median is at or below the k-th smallest error with the probability that at least
    half of n draws are among those k: no interval but that of 2.5 and 97.5 % has its ends there, up to what 4000
    resamples let one see (five standard deviations; 5 % is ten of them away)."""
    n, spread = 401, 5 * (0.025 * 0.975 / RESAMPLES) ** 0.5
    ends = median_interval(torch.arange(n, dtype=torch.float64), generator)
    for end, share in zip(ends, (0.025, 0.975), strict=True):
        below, here = (float(stats.binom.sf(n // 2, n, k / n)) for k in (math.ceil(end), math.floor(end) + 1))
        assert below <= share + spread and here >= share - spread


@pytest.mark.slow
def test_the_whole_experiment_on_toy_sizes(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "experiments.factors.run", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "factors.json").read_text())
    names = {"Adam", "principal axes, transported", "random elements, transported", "scaled gradient descent"}
    assert names <= set(found["factorization"]["results"]["noisy"]["beta2 tuned"])
    assert "principal axes, kept" in found["lora"]["results"]["adapters"]["beta2 = 0.999"]
    assert "s left)" in done.stderr and "| principal axes, reset |" in done.stdout
    assert (tmp_path / "factors.png").stat().st_size > 10_000
