"""What an optimizer remembers beyond what has a law, and the optimizers inside it."""

from functools import partial
from typing import Any

import network_cases
import pytest
from network_cases import RELU
from pytorch_optimizer import MADGRAD, Lookahead, Ranger
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.optim import SGD, Adafactor, Adam, Optimizer, Rprop

from meta_teleport.errors import UserError
from meta_teleport.optimizers.teleported import TeleportedOptimizer


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for seed in steps:
        model.zero_grad()
        network_cases.loss(model, RELU.batch(seed)).backward()
        optimizer.step()


def test_weights_that_an_optimizer_keeps_are_not_left_behind() -> None:
    def made(base: Optimizer, model: Any, state: str) -> TeleportedOptimizer:
        return TeleportedOptimizer(base, model, RELU.symmetry, "balanced", 2, state=state)

    for make in (AdamWScheduleFree, partial(Ranger, k=1), partial(MADGRAD, eps=1e-6)):
        model = RELU.build()
        base = make(model.parameters(), lr=1e-2)
        if hasattr(base, "train"):
            base.train()
        with pytest.raises(UserError, match=r"keeps weights in its state \('\w+'\), .*: use state='reset'"):
            train(model, made(base, model, "keep"), range(1))
        again = made(base, model, "reset")
        train(model, again, range(3))
        assert again.teleports[0].accepted
    for state in ("transport", "keep", "reset"):
        model = RELU.build()
        with pytest.raises(UserError, match=r"Lookahead keeps weights in its state \('slow_params'\), .* inside it"):
            made(Lookahead(Adam(model.parameters(), 0.1)), model, state)
    for plain in (Rprop, Adafactor):
        model = RELU.build()
        train(model, made(plain(model.parameters()), model, "keep"), range(2))


def test_a_reset_reaches_the_optimizer_inside() -> None:
    model = RELU.build()
    inside = Adam(model.parameters(), 0.1)
    base = SGD(model.parameters(), 0.1)
    base.inside = inside  # type: ignore[attr-defined]
    optimizer = TeleportedOptimizer(base, model, RELU.symmetry, "balanced", state="reset")
    network_cases.loss(model, RELU.batch()).backward()
    inside.step()
    assert optimizer.teleport().accepted
    assert {name for name, p in model.named_parameters() if p in inside.state} == {"2.bias"}
