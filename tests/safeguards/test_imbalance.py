"""How unevenly norms are spread along an orbit, and what bounds it."""

from collections.abc import Callable
from math import cosh, inf

import laws
import network_cases
import pytest
import torch
from network_cases import HEADS, LINEAR, NETWORKS, RELU, Network
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from meta_teleport.optimizers.teleported import TeleportedOptimizer
from meta_teleport.params import Params
from meta_teleport.safeguards.imbalance import Balance, imbalance
from meta_teleport.symmetry.groups import GL, Orthogonal
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.teleportation.gauges import balanced
from meta_teleport.teleportation.teleport import teleport


def params_of(model: nn.Module) -> Params:
    return {name: p.detach().unsqueeze(0) for name, p in model.named_parameters()}


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_it_is_one_at_the_balanced_gauge_and_more_everywhere_else(network: Network, generator: torch.Generator) -> None:
    params = params_of(network.build())
    for site in network.symmetry.sites:
        even = site.act(params, balanced(site, params))
        laws.assert_close(imbalance(site, even), torch.ones(1, dtype=torch.float64), 1e-12)
        for size in (0.1, 1.0, 3.0):
            g = site.group.sample(1, generator=generator, size=size, dtype=torch.float64)
            assert bool(imbalance(site, site.act(even, g)) > 1 + 1e-6)


def test_it_is_the_squared_norm_in_multiples_of_the_least() -> None:
    """Two units, norms (3, 4) below and (1, 2) above: 9 + 16 + 1 + 4 of at least 2 (3 + 8)."""
    site = RELU.symmetry.sites[0]
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    site = Site("0", type(site.group)(2), (View.along("0.weight", (2, 2), 0),), (View.along("2.weight", (1, 2), 1),))
    params: Params = {"0.weight": torch.tensor([[[3.0, 0], [0, 4]]]), "2.weight": torch.tensor([[[1.0, -2]]])}
    assert set(params) == {name for name, _ in model.named_parameters()}
    assert float(imbalance(site, params)) == pytest.approx(30 / 22, rel=1e-6)


def test_rotations_leave_it_alone_and_other_elements_do_not(generator: torch.Generator) -> None:
    params, site = params_of(LINEAR.build()), LINEAR.symmetry.sites[0]
    turned = site.act(params, Orthogonal(4).sample(1, generator=generator, size=2.0, dtype=torch.float64))
    laws.assert_close(imbalance(site, turned), imbalance(site, params), 1e-12)
    bent = site.act(params, GL(4).sample(1, generator=generator, size=2.0, dtype=torch.float64))
    laws.must_fail(laws.assert_close, imbalance(site, bent), imbalance(site, params), 1e-2)


def test_one_default_search_from_a_balanced_site_stays_below_the_limit() -> None:
    site = RELU.symmetry.sites[0]
    params = params_of(RELU.build())
    even = site.act(params, balanced(site, params))
    for unit in range(site.group.k):
        for sign in (-1.0, 1.0):
            algebra = torch.zeros(1, site.group.k, dtype=torch.float64)
            algebra[0, unit] = sign
            assert float(imbalance(site, site.act(even, site.group.exp(algebra)))) <= cosh(2) < 4


def test_a_pair_whose_product_is_zero_starts_where_it_is_first_seen_otherwise() -> None:
    model = LINEAR.build()
    with torch.no_grad():
        model[1].weight.zero_()
    balance = Balance(model, LINEAR.symmetry, 2.0)
    assert balance.start == {"0": inf}
    with torch.no_grad():
        model[1].weight.fill_(1.0).add_(torch.eye(4))
    here = {name: p.detach() for name, p in model.named_parameters()}
    far = {**here, "0.weight": 1e3 * here["0.weight"], "0.bias": 1e3 * here["0.bias"]}
    assert balance.fault(far | {"1.weight": 1e-3 * here["1.weight"]}).startswith("site '0' would have ")
    assert balance.fault(here) == ""


@pytest.mark.parametrize("network", [RELU, LINEAR, HEADS], ids=str)
def test_weights_that_are_not_finite_are_refused(network: Network) -> None:
    model = network.build()
    here = {name: p.detach().clone() for name, p in model.named_parameters()}
    here[network.symmetry.sites[0].parameters[0]][0] = torch.nan
    assert (
        Balance(model, network.symmetry, 4.0).fault(here).startswith(f"site '{network.symmetry.sites[0].name}' would")
    )


@pytest.mark.parametrize("network", [RELU, LINEAR, HEADS], ids=str)
def test_teleports_that_pile_up_are_refused(network: Network) -> None:
    """Forty searches in a row, without a step between: every one keeps the loss, together they ruin the weights."""

    def largest(limit: float) -> tuple[float, TeleportedOptimizer]:
        model = network.build()
        optimizer = TeleportedOptimizer(
            SGD(model.parameters(), 0.0),
            model,
            network.symmetry,
            loss=network_cases.loss,
            batches=lambda: network.batch(0),
            imbalance=limit,
        )
        start = max(optimizer._balance.start.values(), default=1.0)
        for _ in range(40):
            optimizer.teleport()
        return max(float(imbalance(s, params_of(model))) for s in network.symmetry.sites) / start, optimizer

    bounded, optimizer = largest(4.0)
    assert bounded <= 4.0 * (1 + 1e-9)
    assert optimizer.teleports[0].accepted and not optimizer.teleports[-1].accepted
    assert "times the least squared norm of its orbit, and the limit is 4 times" in optimizer.teleports[-1].reason
    assert largest(inf)[0] > 100


def test_what_lowers_an_imbalance_is_accepted_however_high_it_is() -> None:
    model = RELU.build()
    site = RELU.symmetry.sites[0]
    options = {"loss": network_cases.loss, "batches": RELU.batch, "direction": "lower", "tolerance": 1e-3}
    optimizer = TeleportedOptimizer(SGD(model.parameters(), 0.1), model, RELU.symmetry, squared_norm, **options)
    uneven = site.act(params_of(model), torch.tensor([[1e4, 1.0, 1e-3, 1.0, 10.0]], dtype=torch.float64))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(uneven[name][0])
    assert optimizer.teleport().accepted
    found = teleport(model, RELU.symmetry, "balanced")
    assert float(imbalance(site, {name: p.unsqueeze(0) for name, p in found.params.items()})) == pytest.approx(1.0)


def squared_norm(loss: Callable[[Params], Tensor], params: Params) -> Tensor:
    return torch.stack([p.square().sum() for p in params.values()]).sum().reshape(1)


BASES: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "adamw": lambda p: AdamW(p, 1e-3),
    "momentum": lambda p: SGD(p, 0.03, momentum=0.9),
}


@pytest.mark.parametrize("base", BASES)
def test_two_thousand_steps_with_teleports_end_where_those_without_do(base: str) -> None:
    """A classifier of 256 points, the gradient norm raised every 100 steps: without a bound AdamW is ruined."""

    def end(limit: float | None) -> float:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))
            x, y = torch.randn(256, 20), torch.randint(3, (256,))
        symmetry = Symmetry.manual(model, {"hidden": ("scaling", ["0.weight", "0.bias"], ["2.weight"])})

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        optimizer = BASES[base](list(model.parameters()))
        if limit is not None:
            optimizer = TeleportedOptimizer(
                optimizer, model, symmetry, "gradient_norm", 100, loss=loss, batches=lambda: (x, y), imbalance=limit
            )
        for _ in range(2000):
            optimizer.zero_grad()
            loss(model, (x, y)).backward()
            optimizer.step()
        return float(loss(model, (x, y)).detach())

    plain = end(None)
    assert end(4.0) < 1.1 * plain
    if base == "adamw":
        assert not end(inf) < 1e3 * plain
