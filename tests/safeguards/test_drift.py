"""Ten thousand teleports without a step between: how far rounding takes the outputs.

A teleport V' = g V, U' = U g^-1 rounds every entry by k eps of |g| |V|, so that the outputs move by

    ||dF|| / ||F|| <= 2 k eps cond(g) ||U|| ||V|| / ||U V||  kappa,       kappa = ||F||_0 / ||F||,

kappa the size that the outputs would have without cancellation. ``||U|| ||V||`` is at most ``imbalance ||U V||_*``, and
that is what the budget of a run bounds: without one, searches that raise the gradient norm of GL multiply the weights
at every teleport (7e11 after 28 of them, float64), and the digits go.
"""

from math import exp, inf
from typing import Any

import network_cases
import pytest
import torch
from network_cases import LINEAR, NETWORKS, Network
from torch.optim import SGD

import meta_teleport as mt

OBJECTIVES = ("balanced", "whitened", "principal_axes", "random", "gradient_norm")
FACTOR = exp(2) * 5**0.5 * 2
"""``cond(g)`` of a search of length 1, ``||U V||_* / ||U V||`` at k = 5, and kappa, which is about 2 here."""


def drifted(network: Network, objective: str, dtype: torch.dtype, count: int, limit: float) -> tuple[float, int, float]:
    """The relative change of the outputs after ``count`` teleports, how many were accepted, and the largest weight."""
    model = network.build().to(dtype)
    x, y = (t.to(dtype) for t in network.batch())
    options: dict[str, Any] = {"generator": torch.Generator().manual_seed(0)} if objective == "random" else {}
    optimizer = mt.TeleportedOptimizer(
        SGD(model.parameters(), 0.0),
        model,
        network.symmetry,
        objective,
        loss=network_cases.loss,
        batches=lambda: (x, y),
        imbalance=limit,
        **options,
    )
    with torch.no_grad():
        before = model(x).double()
        accepted = sum(optimizer.teleport().accepted for _ in range(count))
        drift = float((model(x).double() - before).norm() / before.norm())
    return drift, accepted, max(float(p.detach().abs().max()) for p in model.parameters())


def bound(dtype: torch.dtype, accepted: int, limit: float) -> float:
    """As the module has it, for so many teleports one after the other; independent roundings add up as squares do."""
    k = 5
    return 2 * k * torch.finfo(dtype).eps * limit * FACTOR * accepted**0.5


@pytest.mark.slow
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_teleports_round_no_further_than_they_must(
    network: Network, objective: str, dtype: torch.dtype, count: int
) -> None:
    drift, accepted, _ = drifted(network, objective, dtype, count, 4.0)
    assert accepted >= 1 and drift <= bound(dtype, accepted, 4.0)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("objective", ["sharpness", "curvature"])
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_a_thousand_searches_by_second_derivatives_round_no_further(
    network: Network, objective: str, dtype: torch.dtype
) -> None:
    drift, accepted, _ = drifted(network, objective, dtype, 1000, 4.0)
    assert drift <= bound(dtype, accepted, 4.0)


def test_without_a_budget_searches_multiply_the_weights_and_lose_their_digits() -> None:
    drift, accepted, largest = drifted(LINEAR, "gradient_norm", torch.float64, 20, inf)
    assert largest > 1e4 and drift > bound(torch.float64, accepted, 4.0)
    drift, accepted, largest = drifted(LINEAR, "gradient_norm", torch.float64, 20, 4.0)
    assert largest < 1e2 and drift <= bound(torch.float64, accepted, 4.0)
