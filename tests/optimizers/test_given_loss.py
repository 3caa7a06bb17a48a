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

import meta_teleport as mt
from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.errors import UserError
from meta_teleport.optimizers.learned_optimizer import LearnedOptimizer
from meta_teleport.params import Params
from meta_teleport.rules.classical import NoState
from meta_teleport.rules.rule import Observation, Proposal, Rule, initialized
from meta_teleport.symmetry.symmetry import Symmetry

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


class WithLoss(nn.Sequential):
    """A network that computes its loss itself, as those of transformers do."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (super().forward(x) - labels).square().mean()}


class Seeing(Rule):
    """Gradient descent that remembers the losses it saw."""

    def init(self, params: Params, symmetry: Symmetry) -> NoState:
        self.seen: list[float] = []
        return NoState()

    def forward(self, observation: Observation, state: NoState) -> tuple[Proposal, NoState]:
        self.seen.append(float(observation.loss))
        return Proposal({name: -0.01 * g for name, g in observation.gradients.items()}), state


def with_loss() -> tuple[WithLoss, LearnedOptimizer, list[float]]:
    model = WithLoss(*RELU.build())
    optimizer = LearnedOptimizer(Seeing(), model, RELU.symmetry)
    optimizer._bound.begin()
    return model, optimizer, optimizer._bound.rule.seen  # type: ignore[return-value]


@pytest.mark.parametrize("factor", [1.0, 0.25, 2.0**16], ids=["sum", "mean", "scaled"])
def test_the_loss_that_a_model_returns_is_that_of_the_gradients(factor: float) -> None:
    model, optimizer, seen = with_loss()
    for seed in (0, 4):
        optimizer.zero_grad()
        losses = [model(*RELU.batch(seed + i))["loss"] for i in range(4)]
        for loss in losses:
            (factor * loss).backward()
        with torch.no_grad():
            model(*RELU.batch(9))  # an evaluation
        optimizer.step()
        of_gradients = sum(losses) * (factor if factor <= 1 else 0.25)
        assert abs(seen[-1] - of_gradients) <= 4 * torch.finfo(torch.float64).eps * of_gradients
    assert len(seen) == 2
    with pytest.raises(UserError, match="a learned rule reads the loss"):
        optimizer.step()


def test_one_loss_is_itself_whatever_it_was_multiplied_with() -> None:
    model, optimizer, seen = with_loss()
    loss = model(*RELU.batch())["loss"]
    (loss * 2.0**16).backward()
    optimizer.step()
    assert seen == [loss.item()]


def test_what_is_told_comes_before_what_the_model_returns() -> None:
    model, optimizer, seen = with_loss()

    def closure() -> float:
        optimizer.zero_grad()
        model(*RELU.batch())["loss"].backward()
        return 3.0

    def reporting() -> float:
        optimizer.report(loss=4.0)
        return closure()

    def silent() -> None:
        closure()

    optimizer.report(loss=2.0)
    optimizer.step(closure)
    optimizer.step(reporting)
    closure()
    optimizer.report(loss=5.0)
    optimizer.step()
    optimizer.report(loss=6.0)
    optimizer.step(silent)
    optimizer.step(silent)
    assert seen[:4] == [3.0, 4.0, 5.0, 6.0] and 0 < seen[4] < 3


def test_losses_of_gradients_that_were_cleared_or_are_tried_elsewhere_do_not_count() -> None:
    model, optimizer, seen = with_loss()
    model(*RELU.batch(5))["loss"].backward()
    optimizer.zero_grad()
    moved = {name: 2 * p.detach() for name, p in model.named_parameters()}
    torch.func.grad(lambda params: torch.func.functional_call(model, params, RELU.batch())["loss"])(moved)
    loss = model(*RELU.batch(1))["loss"]
    loss.backward()
    optimizer.step()
    assert seen == [loss.item()]


def test_a_closed_or_forgotten_optimizer_reads_nothing() -> None:
    model, optimizer, _ = with_loss()
    hooks = len(model._forward_hooks)
    LearnedOptimizer(Seeing(), model, RELU.symmetry)
    assert len(model._forward_hooks) == hooks  # the second is gone, and its hook with it
    optimizer.close()
    assert not model._forward_hooks
    model(*RELU.batch())["loss"].backward()
    with pytest.raises(UserError, match="a learned rule reads the loss"):
        optimizer.step()


def test_a_copy_reads_the_losses_of_the_copied_model() -> None:
    model, optimizer, seen = with_loss()
    model(*RELU.batch())["loss"].backward()
    other, copied = copy.deepcopy((model, optimizer))
    loss = other(*RELU.batch(1))["loss"]
    copied.zero_grad()
    loss.backward()
    copied.step()
    assert copied._bound.rule.seen == [loss.item()] and not seen


def test_compiled_code_leaves_the_hook_out() -> None:
    model = WithLoss(*RELU.build())
    optimizer = mt.TeleportedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, RELU.symmetry, "balanced", 1)
    torch.compile(model, backend="eager", fullgraph=True)(*RELU.batch())["loss"].backward()
    optimizer.step()
    assert optimizer._progress.latest is None


def test_teleports_go_by_the_loss_that_the_model_returns() -> None:
    model = WithLoss(*RELU.build())
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = mt.TeleportedOptimizer(base, model, RELU.symmetry, "balanced", mt.Plateau(3))
    for _ in range(8):
        optimizer.zero_grad()
        model(*RELU.batch())["loss"].backward()
        optimizer.step()
    assert [record.step for record in optimizer.teleports] == [4, 7]
    assert optimizer.teleports[0].signs == ("no faster descent afterwards",)
