"""Teleports that would ruin a training: it goes back, and the habit ends."""

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from math import inf, isfinite, nan
from typing import Any

import laws
import network_cases
import pytest
import torch
from network_cases import LINEAR, RELU, Network, parameters
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.utils._python_dispatch import TorchDispatchMode

import meta_teleport as mt
from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.optimizers.history import UNDONE
from meta_teleport.optimizers.learned_optimizer import LearnedOptimizer
from meta_teleport.optimizers.saved_states import extract
from meta_teleport.optimizers.teleported import TeleportedOptimizer
from meta_teleport.rules.rule import initialized


class Faults(TorchDispatchMode):
    """Raises ``error`` in place of the operation of that number; counts them all."""

    def __init__(self, at: int = -1, error: type[BaseException] = MemoryError) -> None:
        super().__init__()
        self.at, self.error, self.count = at, error, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count - 1 == self.at:
            raise self.error(f"at operation {self.at}")
        return func(*args, **(kwargs or {}))


RANDOM = {"generator": torch.Generator().manual_seed(0)}


def teleported(network: Network, model: nn.Module, schedule: Any = (), **options: Any) -> TeleportedOptimizer:
    options = {"loss": network_cases.loss, "batches": lambda: network.batch(99), **options}
    return TeleportedOptimizer(Adam(model.parameters(), 0.02), model, network.symmetry, schedule=schedule, **options)


def train(network: Network, model: nn.Module, optimizer: TeleportedOptimizer, seeds: range) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        loss = network_cases.loss(model, network.batch(seed))
        loss.backward()
        optimizer.step()
        optimizer.report(loss=loss)


def snapshot(model: nn.Module, optimizer: TeleportedOptimizer) -> dict[str, Any]:
    """Parameters, gradients and the state of the base optimizer, as copies."""
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"params": parameters(model), "gradients": gradients, "state": deepcopy(optimizer.base.state_dict())}


def measurements(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(24, 4, generator=generator) @ torch.randn(4, 24, generator=generator) / 10
    while True:
        x = torch.randn(32, 24, generator=generator)
        yield x, x @ matrix + 0.3 * torch.randn(32, 24, generator=generator)


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().sum(1).mean()


def factorised(seed: int, steps: int = 600, **options: Any) -> tuple[float, list[Any]]:
    """The mean of the last losses of SGD on two factors, teleported up the gradient norm every 50 steps."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(24, 4, bias=False), nn.Linear(4, 24, bias=False))
    batches, others = measurements(seed), measurements(100 + seed)
    sgd = SGD(model.parameters(), 0.03)
    symmetry = mt.find_symmetries(model, torch.randn(2, 24, generator=torch.Generator().manual_seed(0)))
    options = {"schedule": 50, "loss": squared_error, "batches": lambda: next(others), **options}
    optimizer = TeleportedOptimizer(sgd, model, symmetry, **options)
    losses: list[float] = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = squared_error(model, next(batches))
        loss.backward()
        losses.append(float(loss.detach()))
        if not isfinite(losses[-1]):
            break
        optimizer.step()
        optimizer.report(loss=loss)
    return sum(losses[-50:]) / 50, optimizer.teleports


@pytest.mark.parametrize("seed", range(3))
def test_a_training_that_teleports_would_ruin_goes_back(seed: int) -> None:
    plain, _ = factorised(seed, schedule=())
    ruined, _ = factorised(seed, imbalance=inf, patience=inf)
    assert not isfinite(ruined)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the loss rose after 3 teleports in a row", UserWarning)
        saved, teleports = factorised(seed, imbalance=inf)
    assert saved < 1.5 * plain
    assert any(UNDONE in record.signs for record in teleports) and len(teleports) < 600 // 50


def test_the_end_of_the_habit_is_warned_of() -> None:
    model = LINEAR.build()
    optimizer = teleported(LINEAR, model, 1, imbalance=inf, patience=1, objective="random", **RANDOM)
    train(LINEAR, model, optimizer, range(1))
    with pytest.warns(UserWarning, match="the loss rose after 1 teleports in a row: there are no more"):
        optimizer.report(loss=inf)
    train(LINEAR, model, optimizer, range(3))
    assert len(optimizer.teleports) == 1


def test_going_back_is_to_the_weights_before_the_teleport_with_a_new_state() -> None:
    model = LINEAR.build()
    optimizer = teleported(LINEAR, model, imbalance=inf)
    train(LINEAR, model, optimizer, range(6))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert optimizer.teleport().accepted
    train(LINEAR, model, optimizer, range(2))
    optimizer.report(loss=inf)
    laws.same_bits(before, {name: p.detach() for name, p in model.named_parameters()})
    assert not optimizer.base.state and all(p.grad is None for p in model.parameters())
    assert UNDONE in optimizer.teleports[-1].signs


def test_after_the_watch_there_is_no_way_back() -> None:
    model = LINEAR.build()
    optimizer = teleported(LINEAR, model, imbalance=inf)
    optimizer.teleport()
    for _ in range(30):
        optimizer.report(loss=1.0)
    moved = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.report(loss=inf)
    laws.same_bits(moved, {name: p.detach() for name, p in model.named_parameters()})


@pytest.mark.parametrize(
    ("network", "state", "error"),
    [(RELU, "transport", MemoryError), (RELU, "reset", KeyboardInterrupt), (RELU, "keep", MemoryError)],
    ids=str,
)
def test_a_fault_at_any_operation_leaves_all_of_a_teleport_or_nothing(
    network: Network, state: str, error: type[BaseException]
) -> None:
    def begun() -> tuple[nn.Module, TeleportedOptimizer]:
        model = network.build()
        optimizer = teleported(network, model, state=state, steps=2)
        train(network, model, optimizer, range(3))
        return model, optimizer

    model, optimizer = begun()
    before = snapshot(model, optimizer)
    with Faults() as counter:
        assert optimizer.teleport().accepted
    whole = snapshot(model, optimizer)
    laws.must_fail(laws.same_bits, before["params"], whole["params"])
    untouched = 0
    model, optimizer = begun()
    for at in range(counter.count):
        try:
            with Faults(at, error):
                optimizer.teleport()
        except error:
            pass
        now = snapshot(model, optimizer)
        if all(torch.equal(now["params"][name], p) for name, p in before["params"].items()):
            laws.same_bits(now, before)
            untouched += 1
        else:
            laws.same_bits({**now, "state": None}, {**whole, "state": None})
            model, optimizer = begun()
    assert untouched > counter.count / 2


def test_losses_are_not_read_where_nothing_is_watched() -> None:
    model = LINEAR.build()
    optimizer = teleported(LINEAR, model, 1000)
    for _ in range(3):
        optimizer.report(loss=torch.zeros((), device="meta"))  # reading it would raise
    assert optimizer.teleport().accepted
    with pytest.raises(RuntimeError, match="meta"):
        optimizer.report(loss=torch.zeros((), device="meta"))


def learned(model: nn.Module, network: Network = LINEAR) -> LearnedOptimizer:
    with initialized(5):
        rule = Equivariant("adam", hidden_size=8, start=-4.0, size=0.5).double()
    return rule.optimizer(model, symmetry=network.symmetry)


def own(optimizer: LearnedOptimizer) -> dict[str, Any]:
    """The state of the rule, and how often it has moved."""
    learned = extract(optimizer.state_dict(), "learned")[1]
    assert learned is not None
    return {"state": learned["state"], "taken": learned["taken"], "rejected": learned["undone"]}


def backward(model: nn.Module, seed: int) -> Tensor:
    model.zero_grad()
    loss = network_cases.loss(model, LINEAR.batch(seed))
    loss.backward()
    return loss


@pytest.mark.parametrize("bad", ["gradient", "loss", "infinite loss"])
def test_a_step_without_finite_numbers_is_skipped_counted_and_warned_of_once(bad: str) -> None:
    model, twin = LINEAR.build(), LINEAR.build()
    optimizer, other = learned(model), learned(twin)
    for seed in range(6):
        loss = backward(model, seed)
        if seed in (2, 4):
            before = {"params": parameters(model), "state": deepcopy(own(optimizer))}
            if bad == "gradient":
                next(model.parameters()).grad[0, 0] = nan
            else:
                loss = loss.detach() * (nan if bad == "loss" else inf)
                optimizer.report(loss=loss)
            expected = (
                pytest.warns(UserWarning, match="not finite|the loss is (nan|inf): this step is skipped")
                if seed == 2
                else nullcontext()
            )
            with expected:
                optimizer.step(loss if bad == "gradient" else None)
            laws.same_bits(before, {"params": parameters(model), "state": own(optimizer)})
            continue
        optimizer.step(loss)
        other.step(backward(twin, seed))
    assert optimizer.skipped == 2 and optimizer.step_count == other.step_count == 4
    laws.same_bits(parameters(model), parameters(twin))
    restored = learned(LINEAR.build())
    restored.load_state_dict(optimizer.state_dict())
    assert restored.skipped == 2


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_closure_that_raises_leaves_weights_and_state_as_they_were(call: int) -> None:
    model = LINEAR.build()
    optimizer = learned(model)
    for seed in range(3):
        optimizer.step(backward(model, seed))
    before = {"params": parameters(model), "state": deepcopy(own(optimizer))}
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise MemoryError("no memory for this batch")
        return backward(model, 7)

    with pytest.raises(MemoryError, match="no memory"):
        optimizer.step(closure)
    assert calls == call
    laws.same_bits(before, {"params": parameters(model), "state": own(optimizer)})
