"""The experiment on the cost of teleports: how often they evaluate the loss, its clock, and the whole of it on toy
networks. Nothing here measures time."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import meta_teleport as mt
from experiments.cost import sizes as overhead_sizes
from experiments.cost import teleports as overhead
from experiments.cost.networks import TOY_NETWORKS, Network, loss
from experiments.cost.training import Training
from experiments.lab import timing as overhead_timing
from experiments.lab.timing import Clock, Counted, Work

NAMES = tuple(TOY_NETWORKS)


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {name: build() for name, build in TOY_NETWORKS.items()}


def passes(network: Network, objective: Any = "gradient_norm", **settings: Any) -> tuple[int, int]:
    """How often a teleport runs the loss forward and backward."""
    counted = Counted(loss)
    found = mt.teleport(network.model, network.symmetry, objective, loss=counted, batch=network.batch, **settings)
    assert found.accepted, found.reason
    return counted.forward, counted.backward


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_norm_takes_two_gradients_and_two_losses_however_many_steps(
    networks: dict[str, Network], name: str
) -> None:
    for steps in (1, 10, 20):
        assert passes(networks[name], steps=steps) == (4, 2)


def test_a_function_is_evaluated_at_every_step(networks: dict[str, Network]) -> None:
    for steps in (1, 10):
        forward, backward = passes(networks["MLP"], overhead.differentiated, steps=steps)
        assert (forward, backward) == (2 + steps + 1, steps + 1)


@pytest.mark.parametrize("name", NAMES)
def test_gauges_evaluate_the_loss_for_their_drift_only(networks: dict[str, Network], name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for objective in (*overhead.GAUGES, "random"):
        assert passes(networks[name], objective, generator=generator) == (2, 0)


def test_counted_tells_forward_from_backward(networks: dict[str, Network]) -> None:
    network, counted = networks["MLP"], Counted(loss)
    with torch.no_grad():
        counted(network.model, network.batch)
    value = counted(network.model, network.batch)
    assert (counted.forward, counted.backward) == (2, 0)
    torch.autograd.grad(value, list(network.model.parameters()))
    assert (counted.forward, counted.backward) == (2, 1)


class FakeMachine:
    """A clock that only work moves, by ``slowness(number of calls so far)`` per unit of cost."""

    def __init__(self, slowness: Callable[[int], float]) -> None:
        self.slowness, self.now, self.calls = slowness, 0.0, 0

    def work(self, cost: float, units: int = 1) -> Work:
        def run() -> None:
            self.now += cost * self.slowness(self.calls)
            self.calls += 1

        return Work(lambda: run, units)


def compared(
    monkeypatch: pytest.MonkeyPatch, slowness: Callable[[int], float], units: int = 1, bursts: int = 4
) -> dict[str, Any]:
    machine = FakeMachine(slowness)
    monkeypatch.setattr(overhead_timing, "perf_counter", lambda: machine.now)
    return Clock(bursts, 0.0).compare(machine.work(3.0, units), machine.work(1.0))


def test_a_ratio_does_not_see_a_machine_that_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    row = compared(monkeypatch, lambda calls: 1 + 0.1 * calls)
    assert row["ratio"] == pytest.approx(3, rel=1e-12)
    assert row["ci95"] == pytest.approx([3, 3], rel=1e-12)
    assert row["seconds"] / row["reference_seconds"] == pytest.approx(3, rel=1e-12)
    assert row["reference_seconds"] > 1.5


def test_the_first_burst_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared(monkeypatch, lambda calls: 1000 if calls == 1 else 1)["ratio"] == pytest.approx(3)
    late = compared(monkeypatch, lambda calls: 1000 if calls == 4 else 1)
    assert late["ratio"] > 10
    assert late["ci95"][0] < 3.001 < late["ratio"] < late["ci95"][1]


def test_ratios_are_per_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared(monkeypatch, lambda calls: 1.0, units=6)["ratio"] == pytest.approx(0.5)


def test_a_cycle_of_training_makes_one_teleport(networks: dict[str, Network]) -> None:
    training = Training(networks["MLP"], "Adam", every=3)
    cycle = training.work().begin()
    for number in range(1, 4):
        cycle()
        assert [record.step for record in training.teleports[0]] == [3 * i for i in range(1, number + 1)]
    assert training.accepted == 1.0


def test_training_without_teleports_makes_none(networks: dict[str, Network]) -> None:
    before = [p.clone() for p in networks["MLP"].model.parameters()]
    for every in (None, 0):
        training = Training(networks["MLP"], "SGD", every)
        work = training.work()
        work.begin()()
        assert work.units == 1
        assert training.accepted is None
    assert all(torch.equal(p, q) for p, q in zip(before, networks["MLP"].model.parameters(), strict=True))


def test_what_teleports_add_is_in_inverse_proportion_to_their_interval() -> None:
    rows = [{"optimizer": "SGD", "every": 0, "state": "transport", "ratio": 1.01}]
    rows += [{"optimizer": "SGD", "every": k, "state": "transport", "ratio": 1.01 + 20 / k} for k in (5, 100)]
    rows += [{"optimizer": "SGD", "every": 5, "state": "keep", "ratio": 1.7}]
    found = overhead.extrapolated(rows, 1000)
    assert found["ratio"] == pytest.approx(1.01 + 20 / 1000)
    assert found["extrapolated"]


def test_the_experiment_runs_on_toy_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--smoke", "--out", str(tmp_path)])
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        overhead.main()
    torch.set_num_threads(threads)
    results = json.loads((tmp_path / "overhead.json").read_text())
    assert {"torch", "python"} <= set(results["provenance"]["versions"])
    assert results["smoke"]
    assert [row["network"] for row in results["detection"]] == [*NAMES, "small ViT"]
    for part in ("teleports", "training", "widths"):
        assert all(row.get("extrapolated") or 0 < row["ci95"][0] <= row["ci95"][1] for row in results[part])
    teleports = {(row["network"], row["teleport"]): row for row in results["teleports"]}
    assert all(row["accepted"] for row in teleports.values())
    assert len(teleports) == 9 * len(NAMES)
    assert teleports["CNN", "gradient norm, 10 steps"]["backward"] == 2
    of_training = {(row["network"], row["optimizer"], row["every"], row["state"]): row for row in results["training"]}
    assert all(row["accepted"] for key, row in of_training.items() if key[2] and "accepted" in row)
    assert {key[:2] for key, row in of_training.items() if row.get("extrapolated")} == {
        (name, optimizer) for name in NAMES[1:] for optimizer in ("SGD", "Adam")
    }
    assert {row["width"] for row in results["widths"]} == {4}
    sizes = {(row["teleport"], row["against"], row["width"], row["depth"]): row for row in results["sizes"]}
    assert len(sizes) == 4 * len(overhead_sizes.KINDS) and all(row["ratio"] > 0 for row in sizes.values())
    assert sizes["gradient norm, (a), 1 step", "width", 128, 2]["parameters"] == 784 * 128 + 128 * 128 + 128 * 10
    assert [fit["teleport"] for fit in results["exponents"]] == list(overhead_sizes.KINDS)
    assert set(results["load"]) == {"detection", "teleports", "training", "widths", "sizes"}
    assert (tmp_path / "overhead_sizes.png").stat().st_size > 10_000
    assert not (tmp_path / "overhead-progress").exists()
    assert (tmp_path / "overhead.png").stat().st_size > 10_000
    assert (tmp_path / "overhead.md").read_text() + "\n" == capsys.readouterr().out


GRADIENTS = {
    "gradient norm, scaling, 10 steps": 2,
    "gradient norm, GL, 1 step": 2,
    "gradient norm, (a), 1 step": 2,
    "gradient norm, (b), 1 step": 2,
    "sharpness, scaling, 1 of 10 directions, 1 step": 18,
    "curvature, scaling, 1 of 10 directions, 1 step": 0,
}


@pytest.mark.parametrize("name", overhead_sizes.KINDS)
def test_searches_evaluate_the_loss_as_often_as_theory_says(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = overhead_sizes.KINDS[name]
        subject = overhead_sizes.subject(kind, 6, 2, "cpu")
    calls = []

    def loss(params: Any) -> torch.Tensor:
        calls.append(1)
        return subject.loss(params)

    overhead_sizes.search(kind, replace(subject, loss=loss))()
    assert len(calls) == GRADIENTS[name]
    subject.pass_once()


def test_a_power_law_has_its_exponent() -> None:
    x = [16.0, 32.0, 64.0, 128.0]
    fit = overhead_sizes.slope(x, [3 * v**1.5 for v in x])
    assert fit["exponent"] == pytest.approx(1.5) and fit["at"] == pytest.approx(3)
    assert fit["ci95"] == pytest.approx([1.5, 1.5], abs=1e-6)
    noisy = overhead_sizes.slope(x, [3.0, 4.0, 9.0, 10.0])
    assert noisy["ci95"][0] < noisy["exponent"] < noisy["ci95"][1]
    assert overhead_sizes.slope(x[:2], [1.0, 4.0]) == pytest.approx(
        {"exponent": 2.0, "ci95": None, "at": 1 / 256, "points": 2}
    )


def test_exponents_are_those_of_each_teleport() -> None:
    rows = []
    for number, name in enumerate(overhead_sizes.KINDS):
        for width in (32, 64, 128, 256, 512):
            rows.append({"teleport": name, "against": "width", "width": width, "depth": 2, "ratio": width**number})
        for depth in (2, 4, 8):
            rows.append({"teleport": name, "against": "depth", "width": 8, "depth": depth, "ratio": depth**-number})
    for number, fit in enumerate(overhead_sizes.exponents(rows)):
        for label, sign, points in (("width", 1, 5), ("wide", 1, 3), ("depth", -1, 3)):
            assert fit[label]["exponent"] == pytest.approx(sign * number) and fit[label]["points"] == points
        assert fit["last"] == pytest.approx(number)
