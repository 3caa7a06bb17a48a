"""The loops that people write around a learned optimizer: who calls backward, and with what gradients a step goes."""

import copy
from collections.abc import Callable
from typing import Any

import laws
import network_cases
import pytest
import torch
from network_cases import RELU, parameters
from torch import Tensor, nn

from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.errors import UserError
from meta_teleport.optimizers.learned_optimizer import LearnedOptimizer
from meta_teleport.rules.rule import initialized

Loop = Callable[[nn.Module, LearnedOptimizer, Tensor], None]


def rule(update: str = "gd", **options: Any) -> Equivariant:
    with initialized(5):
        made = Equivariant(update, hidden_size=8, size=0.5, lr=0.05, **options).double()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for p in made.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return made


def trained(loop: Loop, steps: int = 4) -> dict[str, Tensor]:
    model = RELU.build()
    optimizer = rule().optimizer(model, symmetry=RELU.symmetry)
    for seed in range(steps):
        loop(model, optimizer, network_cases.loss(model, RELU.batch(seed)))
    return parameters(model)


def alone(model: nn.Module, optimizer: LearnedOptimizer, loss: Tensor) -> None:
    optimizer.step(loss)


def as_others(model: nn.Module, optimizer: LearnedOptimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(loss)


def with_zeros(model: nn.Module, optimizer: LearnedOptimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step(loss)


def cleared(model: nn.Module, optimizer: LearnedOptimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=False)
    optimizer.step(loss)


def reported(model: nn.Module, optimizer: LearnedOptimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.report(loss=loss)
    optimizer.step()


@pytest.mark.parametrize("loop", [as_others, with_zeros, cleared, reported])
def test_every_loop_makes_the_same_steps(loop: Loop) -> None:
    laws.same_bits(trained(loop), trained(alone))


def test_gradients_that_accumulate_are_those_of_the_whole_batch() -> None:
    def accumulated(model: nn.Module, optimizer: LearnedOptimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        for _ in range(3):
            (loss / 4).backward(retain_graph=True)
        (loss / 4).backward()
        optimizer.step(loss)

    laws.params_close(
        {name: p.unsqueeze(0) for name, p in trained(accumulated).items()},
        {name: p.unsqueeze(0) for name, p in trained(alone).items()},
        1e-12,
    )


def test_gradients_that_were_changed_are_used_as_they_are() -> None:
    def halved(model: nn.Module, optimizer: LearnedOptimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        for p in model.parameters():
            assert p.grad is not None
            p.grad.mul_(0.5)
        optimizer.step(loss)

    laws.must_fail(laws.same_bits, trained(halved), trained(alone))


def test_a_reported_loss_serves_one_step() -> None:
    model = RELU.build()
    optimizer = rule().optimizer(model, symmetry=RELU.symmetry)
    reported(model, optimizer, network_cases.loss(model, RELU.batch()))
    with pytest.raises(UserError, match=r"reads the loss: call step\(loss\), step\(closure\), or report"):
        optimizer.step()


def test_a_copy_tells_new_gradients_of_its_own() -> None:
    model = RELU.build()
    optimizer = rule().optimizer(model, symmetry=RELU.symmetry)
    alone(model, optimizer, network_cases.loss(model, RELU.batch()))
    other, copied = copy.deepcopy((model, optimizer))
    for m, o in ((model, optimizer), (other, copied)):
        as_others(m, o, network_cases.loss(m, RELU.batch(1)))
    laws.same_bits(parameters(other), parameters(model))


def test_past_its_horizon_a_rule_says_so_once() -> None:
    def run(count: int, update: str = "adam", **options: Any) -> None:
        model = RELU.build()
        optimizer = rule(update, horizon=3).optimizer(model, symmetry=RELU.symmetry, **options)
        for seed in range(count):
            alone(model, optimizer, network_cases.loss(model, RELU.batch(seed)))

    run(3)
    run(6, steps=6)
    run(6, "gd")
    with pytest.warns(UserWarning, match=r"step lengths end at step 3: .* rule.optimizer\(..., steps=n\)") as caught:
        run(6)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    model = RELU.build()
    optimizer = rule().optimizer(model, symmetry=RELU.symmetry)
    alone(model, optimizer, network_cases.loss(model, RELU.batch()))
    state = optimizer.state_dict()
    alone(model, optimizer, network_cases.loss(model, RELU.batch(1)))
    state["param_groups"][0]["params"] = state["param_groups"][0]["params"][1:]
    before = copy.deepcopy(optimizer._bound.state_dict())
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(state)
    laws.same_bits(optimizer._bound.state_dict(), before)
