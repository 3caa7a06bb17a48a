"""Learned teleports between the steps of any torch optimizer."""

import copy
import io
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import laws
import network_cases
import pytest
import torch
from network_cases import HEADS, LINEAR, RELU, Network, parameters
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, Adam, Optimizer

from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.errors import UserError
from meta_teleport.optimizers.saved_states import embed, extract
from meta_teleport.optimizers.teleported import TeleportedOptimizer
from meta_teleport.params import Params
from meta_teleport.rules.rule import Observation, Rule, initialized
from meta_teleport.symmetry.groups import PositiveScaling
from meta_teleport.teleportation.teleport import teleport

BASES: dict[str, Callable[[Any], Optimizer]] = {"gd": partial(SGD, lr=0.05), "plain_adam": partial(Adam, lr=0.01)}


def trained(update: str = "gd", **options: Any) -> Rule:
    """A rule whose heads are not zero, as if it had been trained."""
    with initialized(5):
        rule = Equivariant(update, hidden_size=8, size=0.5, lr=0.05 if update == "gd" else 0.01, **options).double()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for p in rule.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return rule


def over(
    network: Network, model: nn.Module, rule: Rule, update: str = "gd", schedule: Any = 1, **options: Any
) -> TeleportedOptimizer:
    return TeleportedOptimizer(BASES[update](model.parameters()), model, network.symmetry, rule, schedule, **options)


def train(network: Network, model: nn.Module, optimizer: Optimizer, steps: range = range(5)) -> Params:
    for seed in steps:

        def closure(seed: int = seed) -> Tensor:
            optimizer.zero_grad()
            value = network_cases.loss(model, network.batch(seed))
            value.backward()
            return value

        optimizer.step(closure)
    return {name: p.unsqueeze(0) for name, p in parameters(model).items()}


@pytest.mark.parametrize("update", BASES)
@pytest.mark.parametrize("network", [RELU, LINEAR], ids=str)
def test_over_a_plain_optimizer_it_is_the_rule_with_that_update(network: Network, update: str) -> None:
    model = network.build()
    rule = trained(update)
    expected = train(network, model, rule.optimizer(model, symmetry=network.symmetry, checked=False))
    state = "transport" if "transport" in type(rule.update).__dict__ else "keep"

    def run(**options: Any) -> Params:
        model = network.build()
        optimizer = over(network, model, rule, update, **{"state": state, "imbalance": inf, **options})
        found = train(network, model, optimizer)
        assert {record.reason for record in optimizer.teleports} == {""}
        return found

    laws.params_close(run(), expected, 1e-11)
    laws.must_fail(laws.params_close, run(schedule=2), expected, 1e-6)
    losses = {"loss": network_cases.loss, "batches": lambda: network.batch(99)}
    laws.must_fail(laws.params_close, run(**losses), expected, 1e-6)


@pytest.mark.parametrize("network", [RELU, LINEAR, HEADS], ids=str)
def test_one_teleport_is_what_the_rule_says(network: Network) -> None:
    model, rule, batch = network.build(), trained(), network.batch()
    leaves = {name: p.requires_grad_() for name, p in parameters(model).items()}
    value = (functional_call(model, leaves, (batch[0],)) - batch[1]).square().mean()
    gradients = {
        name: g.unsqueeze(0) for name, g in zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True)
    }
    params = {name: p.detach().unsqueeze(0) for name, p in leaves.items()}

    def wanted(loss: Tensor) -> Params:
        hooks = rule.proposer(model, network.symmetry)._bound.hooks
        model(batch[0])
        zero = torch.zeros(1, dtype=torch.long)
        seen = Observation(params, gradients, loss.reshape(1), zero, grams=hooks.grams(), symmetry=network.symmetry)
        proposal, _ = rule(seen, rule.init(params, network.symmetry))
        hooks.close()
        return {name: p.detach() for name, p in network.symmetry.flow(params, proposal.algebra).items()}

    found = teleport(model, network.symmetry, rule, loss=network_cases.loss, batch=batch)
    assert found.accepted and found.drift < 1e-12
    moved = {name: p.unsqueeze(0) for name, p in found.params.items()}
    laws.params_close(moved, wanted(value.detach()), 1e-12)
    laws.must_fail(laws.params_close, moved, params, 1e-3)


@pytest.mark.parametrize(("update", "horizon"), [("gd", 30), ("adam", 1)])
def test_the_schedule_says_when_whatever_the_rule_was_trained_for(update: str, horizon: int) -> None:
    model = RELU.build()
    optimizer = over(RELU, model, trained(update, every=7, horizon=horizon), schedule=2)
    train(RELU, model, optimizer)
    assert [(record.step, record.sizes["0"] > 1e-3) for record in optimizer.teleports] == [(2, True), (4, True)]


def test_a_reported_loss_will_do() -> None:
    def run(report: bool) -> Params:
        model = RELU.build()
        optimizer = over(RELU, model, trained())
        for seed in range(4):
            optimizer.zero_grad()
            value = network_cases.loss(model, RELU.batch(seed))
            value.backward()
            if report:
                optimizer.report(loss=value)
            optimizer.step()
        return {name: p.unsqueeze(0) for name, p in parameters(model).items()}

    model = RELU.build()
    laws.params_close(run(True), train(RELU, model, over(RELU, model, trained()), range(4)), 1e-12)
    with pytest.raises(UserError, match=r"the rule reads the loss: pass a closure to step, call report"):
        run(False)


def test_the_state_of_the_rule_moves_only_with_the_weights() -> None:
    def average(tolerance: float) -> Params:
        model = LINEAR.build()
        optimizer = over(LINEAR, model, trained(averaging=0.5), tolerance=tolerance)
        train(LINEAR, model, optimizer, range(1))
        assert optimizer.teleports[0].accepted == (tolerance > 1e-16)
        return optimizer._view.proposer._bound.state.average

    model = LINEAR.build()
    train(LINEAR, model, SGD(model.parameters(), lr=0.0), range(1))
    half = {name: p.grad.unsqueeze(0) / 2 for name, p in model.named_parameters()}
    laws.params_close(average(1e-20), half, 1e-12)
    laws.must_fail(laws.params_close, average(1e-4), half, 1e-3)


@pytest.mark.parametrize("losses", [True, False])
@pytest.mark.parametrize("network", [RELU, HEADS], ids=str)
def test_it_resumes_and_copies_bitwise(network: Network, losses: bool) -> None:
    options = {"loss": network_cases.loss, "batches": lambda: network.batch(99)} if losses else {}
    make = partial(over, network, rule=trained("plain_adam", averaging=0.5), update="plain_adam", **options)
    whole = network.build()
    expected = train(network, whole, make(model=whole), range(6))
    model = network.build()
    optimizer = make(model=model)
    train(network, model, optimizer, range(3))
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)
    twin, copied = copy.deepcopy((model, optimizer))
    later = network.build(1)
    later.load_state_dict(weights)
    resumed = make(model=later)
    resumed.load_state_dict(state)
    laws.same_bits(train(network, later, resumed, range(3, 6)), expected)
    laws.same_bits(train(network, twin, copied, range(3, 6)), expected)
    later.load_state_dict(weights)
    base, own = extract(state, "teleportation")
    assert own is not None
    fresh = make(model=later)
    fresh.load_state_dict(embed(base, "teleportation", {**own, "rule": None}))
    laws.must_fail(laws.same_bits, train(network, later, fresh, range(3, 6)), expected)


def test_errors_have_one_line() -> None:
    model = RELU.build()

    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: train(RELU, model, over(RELU, model, Equivariant(bases=[]).double())), "proposes updates only"),
        (lambda: over(RELU, model, trained()).teleport(), "no parameter has a gradient|reads the loss"),
        (lambda: teleport(model, RELU.symmetry, trained()), "pass loss="),
        (lambda: over(RELU, model, Equivariant), "unknown objective"),
    ]
    for wrong, message in cases:
        with pytest.raises(UserError, match=message) as raised:
            wrong()
        assert "\n" not in str(raised.value)
    assert isinstance(RELU.symmetry.sites[0].group, PositiveScaling)
