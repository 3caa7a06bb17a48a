"""Models that change while they train under teleports: the run goes on, and the record says why nothing moved."""

import re
from collections.abc import Callable
from typing import Any

import network_cases
import pytest
import torch
from network_cases import RELU, parameters
from torch import nn
from torch.optim import SGD, Optimizer

import meta_teleport as mt


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for seed in steps:
        model.zero_grad()
        network_cases.loss(model, RELU.batch(seed)).backward()
        optimizer.step()


def freeze(model: Any) -> None:
    model[0].requires_grad_(False)


def replace_weight(model: Any) -> None:
    model[2].weight = torch.nn.Parameter(model[2].weight.detach().clone())


def add_head(model: Any) -> None:
    model.add_module("head", torch.nn.Identity())
    model.head.register_parameter("scale", torch.nn.Parameter(torch.ones((), dtype=torch.float64)))


def halve_precision(model: Any) -> None:
    model[2].to(torch.bfloat16)


def one_of_another_precision(model: Any) -> None:
    model[2].bias = torch.nn.Parameter(model[2].bias.detach().float())


def compile_in_place(model: Any) -> None:
    model[0].compile()


def remove_bias(model: Any) -> None:
    model[0].bias = None


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "frozen": (freeze, "every site has a frozen parameter"),
    "replaced": (replace_weight, "holds a tensor that is not a parameter of the model"),
    "added": (add_head, "'head.scale' is new since the symmetry was found"),
    "half": (halve_precision, "'2.weight' is bfloat16"),
    "mixed": (one_of_another_precision, "bring them to one device and one precision"),
    "compiled": (compile_in_place, "is compiled in place"),
    "removed": (remove_bias, r"0\.bias"),
}


@pytest.mark.parametrize("objective", ["balanced", "gradient_norm", "learned"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_has_changed_has_a_record_and_training_goes_on(change: str, objective: str) -> None:
    model: Any = RELU.build()
    rule: Any = mt.load("factors") if objective == "learned" else objective
    base = SGD(model.parameters(), 0.01)
    batches = {"loss": network_cases.loss, "batches": RELU.batch}
    optimizer = mt.TeleportedOptimizer(base, model, RELU.symmetry, rule, 2, **batches)  # type: ignore[arg-type]
    train(model, optimizer, range(2))
    apply, reason = CHANGES[change]
    apply(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = parameters(model)
    optimizer.step()
    optimizer.step()
    after = parameters(model)
    assert any(not torch.equal(after[name], before[name]) for name in before)  # the base optimizer has stepped
    assert [record.step for record in optimizer.teleports] == [2, 4]
    last = optimizer.teleports[-1]
    assert not last.accepted and re.search(reason, last.reason) and "\n" not in last.reason
    assert last.sizes == {"0": 0.0}
    assert optimizer.teleport().reason == last.reason  # asked for, too


@pytest.mark.parametrize("objective", ["balanced", "learned"])
def test_teleports_go_on_where_a_layer_thaws_or_numbers_are_exchanged(objective: str) -> None:
    model: Any = RELU.build()
    rule: Any = mt.load("factors") if objective == "learned" else objective
    batches = {"loss": network_cases.loss, "batches": RELU.batch}
    optimizer = mt.TeleportedOptimizer(SGD(model.parameters(), 0.01), model, RELU.symmetry, rule, 1, **batches)  # type: ignore[arg-type]
    freeze(model)
    train(model, optimizer, range(1))
    model[0].requires_grad_(True)
    for p in model.parameters():
        p.data = p.data.clone()
    train(model, optimizer, range(1))
    assert [record.accepted for record in optimizer.teleports] == [False, True]
