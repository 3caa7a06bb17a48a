"""Teleports that a few virtual steps say are worse to go on from, and what looking leaves alone."""

from collections.abc import Callable
from copy import deepcopy
from math import inf
from typing import Any

import laws
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import meta_teleport as mt
from meta_teleport.errors import UserError

BASES: dict[str, Callable[[Any, float], Optimizer]] = {
    "sgd": lambda params, lr: SGD(params, lr),
    "momentum": lambda params, lr: SGD(params, lr, momentum=0.9),
    "adam": lambda params, lr: Adam(params, lr),
}


class Quadratic(nn.Module):
    """``L = sum_i h_i (u_i v_i - 1)^2 / 2``, u and v 4 numbers each: the scalings of u_i and v_i leave it alone, and
    along their orbit curvature and gradient grow without bound."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.full((4, 1), 1.2)), nn.Parameter(torch.full((1, 4), 0.6))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        self.calls.add_(1)
        return (h * (self.u[:, 0] * self.v[0] - 1).square()).sum() / 2


SITE = {"product": ("scaling", ["u"], ["v"])}
H = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)


def loss(model: nn.Module, h: Tensor) -> Tensor:
    return model(h)


def trained(base: str, lr: float, lookahead: int, **options: Any) -> tuple[Quadratic, mt.TeleportedOptimizer]:
    model = Quadratic().double()
    options = {"loss": loss, "batches": lambda: H, "imbalance": inf, "patience": inf, "size": 0.2, **options}
    symmetry = mt.Symmetry.manual(model, SITE)
    optimizer = mt.TeleportedOptimizer(
        BASES[base](model.parameters(), lr), model, symmetry, lookahead=lookahead, **options
    )
    for _ in range(3):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: Optimizer) -> float:
    optimizer.zero_grad()
    value = model(H)
    value.backward()
    optimizer.step()
    return float(value.detach())


def after(model: Quadratic, optimizer: mt.TeleportedOptimizer, steps: int) -> float:
    for _ in range(steps):
        step(model, optimizer)
    return float(model(H).detach())


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("base", BASES)
def test_it_refuses_where_descent_would_end_higher_and_accepts_where_it_would_not(base: str, steps: int) -> None:
    """Against really going on from both places, over step sizes on both sides of the edge of stability."""
    verdicts = []
    for lr in (1e-3, 1e-2, 0.1, 0.5):
        stayed = after(*trained(base, lr, 0), steps)
        model, optimizer = trained(base, lr, 0)
        assert optimizer.teleport().accepted
        went = after(model, optimizer, steps)
        model, optimizer = trained(base, lr, steps)
        optimizer._search._tries = 1
        record = optimizer.teleport()
        verdicts.append(record.accepted)
        assert record.accepted == (went <= stayed * (1 + 1e-6)), (lr, went, stayed, record.reason)
        if not record.accepted:
            assert record.reason.startswith(f"{steps} steps from there end at a loss of ")
    if base in ("sgd", "momentum"):
        assert len(set(verdicts)) == 2


@pytest.mark.parametrize("state", ["transport", "reset", "keep"])
@pytest.mark.parametrize("base", BASES)
def test_what_is_foreseen_is_what_comes(base: str, state: str) -> None:
    """The losses that are compared are, to the bit, those of really going on."""
    _, optimizer = trained(base, 0.01, 4, state=state)
    seen: list[float] = []
    end = optimizer._search._lookahead._end
    optimizer._search._lookahead._end = lambda arrive: seen.append(end(arrive)) or seen[-1]
    twin, other = trained(base, 0.01, 0, state=state)
    optimizer.teleport()
    assert seen[0] == after(twin, other, 4)
    twin, other = trained(base, 0.01, 0, state=state)
    assert other.teleport().accepted
    assert seen[1] == after(twin, other, 4)


def everything(model: nn.Module, optimizer: mt.TeleportedOptimizer) -> dict[str, Any]:
    """Copies of parameters, buffers, gradients, the state of the base optimizer and of the generator."""
    tensors = {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    state = deepcopy(optimizer.base.state_dict())
    return {"tensors": tensors, "gradients": gradients, "state": state, "random": torch.get_rng_state()}


@pytest.mark.parametrize("state", ["transport", "reset"])
@pytest.mark.parametrize("base", BASES)
def test_looking_leaves_everything_as_it_was(base: str, state: str) -> None:
    model, optimizer = trained(base, 0.1, 3, state=state)
    before, lookahead = everything(model, optimizer), optimizer._search._lookahead
    lookahead.begin()
    laws.same_bits(everything(model, optimizer), before)
    lookahead._here, lookahead.begin = -1.0, lambda: None  # nothing is good enough
    assert optimizer.teleport().reason.startswith("3 steps from there end at a loss of ")
    laws.same_bits(everything(model, optimizer), before)


def test_a_search_that_goes_too_far_is_shortened() -> None:
    def lengths(tries: int) -> list[float]:
        """How far the teleports that are accepted go, of searches of one step of different lengths."""
        found = []
        for size in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4):
            optimizer = trained("sgd", 0.3, 5, size=size, steps=1)[1]
            optimizer._search._tries = tries
            record = optimizer.teleport()
            found.append(record.sizes["product"] * record.accepted)
        return found

    once, again = lengths(1), lengths(3)
    accepted = sum(length > 0 for length in once)
    assert 0 < accepted < 5 and once == sorted(once[:accepted]) + [0.0] * (7 - accepted)
    assert again[accepted] == again[accepted + 1] == once[accepted - 1] > 0 == again[accepted + 2]


def test_hooks_of_the_base_optimizer_and_schedulers_are_left_out() -> None:
    model, optimizer = trained("adam", 0.01, 3)
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *args: calls.append(1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.teleport()
    assert calls == [] and scheduler.get_last_lr() == [0.01]
    step(model, optimizer)
    assert calls == [1]


@pytest.mark.parametrize("lookahead", [-1, 1.5, True, "3"])
def test_steps_that_are_none_are_refused(lookahead: Any) -> None:
    with pytest.raises(UserError, match=r"lookahead=.*: give a whole number of steps, 0 for none"):
        trained("sgd", 0.1, lookahead)


def test_without_a_loss_there_is_nothing_to_look_at() -> None:
    with pytest.raises(UserError, match="lookahead tries steps: give loss"):
        trained("sgd", 0.1, 3, objective="balanced", loss=None, batches=None)
