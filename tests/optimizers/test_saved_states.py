"""State dicts in the hands of ``torch.distributed.checkpoint``, which takes a step of its own to see states."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import laws
import network_cases
import pytest
import torch
import torch.distributed.checkpoint as dcp
from network_cases import RELU, parameters
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import SGD, AdamW, Optimizer

import meta_teleport as mt
from meta_teleport.optimizers.saved_states import embed, extract

OPTIONS = {
    "nested": None,
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
}


def teleported(model: nn.Module, base: Callable[..., Optimizer] = AdamW, objective: Any = "random") -> Optimizer:
    generator = torch.Generator().manual_seed(0)
    bare = base(model.parameters(), lr=1e-2)
    return mt.TeleportedOptimizer(bare, model, RELU.symmetry, objective, [0, 2, 4], generator=generator)


def learned(model: nn.Module) -> Optimizer:
    return mt.load("factors").optimizer(model, symmetry=RELU.symmetry)


def proposed(model: nn.Module) -> Optimizer:
    return teleported(model, objective=mt.load("factors"))


MAKERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "teleported": teleported,
    "momentumless": partial(teleported, base=SGD),
    "learned": learned,
    "proposed": proposed,
}


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for seed in steps:
        loss = network_cases.loss(model, RELU.batch(seed))
        loss.backward()
        optimizer.report(loss=loss)
        optimizer.step()
        optimizer.zero_grad()


def count(optimizer: Any) -> tuple[int, int]:
    if isinstance(optimizer, mt.TeleportedOptimizer):
        own = extract(optimizer.state_dict(), "teleportation")[1]
        assert own is not None
        return own["progress"]["step"], len(optimizer.teleports)
    return optimizer.step_count, optimizer.rejected


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_a_look_at_the_states_is_no_step(make: Callable[[nn.Module], Any]) -> None:
    model = RELU.build()
    optimizer = make(model)
    before = parameters(model)
    get_optimizer_state_dict(model, optimizer)
    laws.same_bits(parameters(model), before)
    assert count(optimizer) == (0, 0)
    train(model, optimizer, range(2))
    now, counted = parameters(model), count(optimizer)
    get_optimizer_state_dict(model, optimizer)
    laws.same_bits(parameters(model), now)
    assert count(optimizer) == counted and counted[0] == 2


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("name", ["teleported", "learned", "proposed"])
def test_a_distributed_checkpoint_goes_on_bitwise(name: str, options: StateDictOptions | None, tmp_path: Path) -> None:
    look = partial(get_optimizer_state_dict, options=options)
    model = RELU.build()
    optimizer = MAKERS[name](model)
    train(model, optimizer, range(3))
    dcp.save({"weights": model.state_dict(), "optimizer": look(model, optimizer)}, checkpoint_id=tmp_path, no_dist=True)
    train(model, optimizer, range(3, 6))
    later = RELU.build(1)
    resumed = MAKERS[name](later)
    read: dict[str, Any] = {"weights": later.state_dict(), "optimizer": look(later, resumed)}
    dcp.load(read, checkpoint_id=tmp_path, no_dist=True)
    later.load_state_dict(read["weights"])
    set_optimizer_state_dict(later, resumed, read["optimizer"], options=options)
    train(later, resumed, range(3, 6))
    laws.same_bits(parameters(later), parameters(model))
    assert count(resumed) == count(optimizer)
    if isinstance(optimizer, mt.TeleportedOptimizer) and isinstance(resumed, mt.TeleportedOptimizer):
        assert [r.sizes for r in resumed.teleports] == [r.sizes for r in optimizer.teleports]


def test_a_step_that_could_move_something_counts() -> None:
    """The first step of a warm-up has lr 0, and gradients; a dead network has an lr, and no gradient but zeros."""
    for lr, factor in ((0.0, 1.0), (1e-2, 0.0)):
        model = RELU.build()
        optimizer = teleported(model)
        optimizer.param_groups[0]["lr"] = lr
        (factor * network_cases.loss(model, RELU.batch())).backward()
        optimizer.step()
        assert count(optimizer) == (1, 1)


def test_what_is_embedded_comes_out_again() -> None:
    own = {"a": [1, float("inf"), None, "x"], "b": {"c": torch.arange(3), "d": [torch.zeros(()), 2.5]}, "e": True}
    for state in ({"state": {}, "param_groups": [{"lr": 1.0, "params": [0]}, {"params": [1]}]}, {"slow": 1}):
        rest, found = extract(embed(state, "own", own), "own")
        assert rest == state and found is not None
        laws.same_bits(found, own)
        assert extract(state, "own") == (state, None)
    with pytest.raises(TypeError, match="own holds a set, which is neither number, text nor tensor"):
        embed({"param_groups": [{}]}, "own", {"a": {1}})
