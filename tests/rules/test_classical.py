"""Hand-written rules: equal to torch's optimizers, and the hand-written teleporter."""

from collections.abc import Callable
from typing import Any

import laws
import pytest
import torch
from torch import Tensor, nn

from meta_teleport.equivariant.updates import update_named
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.params import Params, flatten
from meta_teleport.rules.classical import Adam, GradientDescent, Momentum, Whitening
from meta_teleport.rules.rule import Observation, Rule
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.regression import Regression, RegressionTasks

FAMILY = Regression(width=4, data="gaussian", bias=True)
STEPS = 20


def train_with_torch(tasks: RegressionTasks, make: Callable[[Any], torch.optim.Optimizer]) -> tuple[Params, Tensor]:
    params = {name: nn.Parameter(p.clone()) for name, p in tasks.params.items()}
    optimizer, step, losses = make(params.values()), torch.zeros(tasks.count).long(), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        tasks.loss(params, step).sum().backward()
        optimizer.step()
        losses.append(tasks.loss(params, step).detach())
    return {name: p.detach() for name, p in params.items()}, torch.stack(losses)


PAIRS: dict[str, tuple[Rule, Callable[[Any], torch.optim.Optimizer]]] = {
    "gd": (GradientDescent(0.02), lambda p: torch.optim.SGD(p, lr=0.02)),
    "momentum": (Momentum(0.01, 0.8), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8)),
    "adam": (Adam(0.05, 0.8, 0.95), lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.8, 0.95))),
    "adam-defaults": (Adam(1e-3), lambda p: torch.optim.Adam(p, lr=1e-3)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch(name: str, generator: torch.Generator) -> None:
    rule, make = PAIRS[name]
    tasks = FAMILY.sample(1, generator, dtype=torch.float64)
    with torch.no_grad():
        losses, carry = unroll(rule, {}, tasks, start(rule, tasks), STEPS)
    params, expected = train_with_torch(tasks, make)
    laws.params_close(carry.params, params, 1e-12)
    laws.assert_close(losses, expected, 1e-12)
    other, _ = train_with_torch(tasks, lambda p: torch.optim.SGD(p, lr=0.021))
    laws.must_fail(laws.params_close, carry.params, other, 1e-4)


@pytest.mark.parametrize("cls", [GradientDescent, Momentum, Adam])
def test_one_setting_per_task(cls: type[Rule], generator: torch.Generator) -> None:
    tasks = FAMILY.sample(3, generator, dtype=torch.float64)
    rates = [1e-3, 1e-2, 3e-2]
    with torch.no_grad():
        grid = cls(torch.tensor(rates, dtype=torch.float64))
        losses, _ = unroll(grid, {}, tasks, start(grid, tasks), 5)
        for i, lr in enumerate(rates):
            one, rule = tasks.select(torch.tensor([i])), cls(lr)
            alone, _ = unroll(rule, {}, one, start(rule, one), 5)
            laws.assert_close(losses[:, i], alone[:, 0], 1e-12)


def test_warm_up(generator: torch.Generator) -> None:
    tasks = FAMILY.sample(2, generator, dtype=torch.float64)
    with torch.no_grad():
        rule, slow, fast = GradientDescent(0.02, warmup=2, warmup_lr=1e-3), GradientDescent(1e-3), GradientDescent(0.02)
        losses, _ = unroll(rule, {}, tasks, start(rule, tasks), 4)
        first, carry = unroll(slow, {}, tasks, start(slow, tasks), 2)
        second, _ = unroll(fast, {}, tasks, carry, 2)
    laws.assert_close(losses, torch.cat([first, second]), 1e-12)


WHITENED = {
    "paper": Regression(),
    "deep-gaussian-bias": Regression(width=10, depth=3, data="gaussian", bias=True),
    "deep-gaussian": Regression(width=12, depth=3, data="gaussian"),
    "linear": Regression(width=8, activation="identity", action="linear", data="gaussian"),
}


@pytest.mark.parametrize("name", WHITENED)
def test_the_hand_written_teleporter_solves_square_problems_in_two_steps(name: str, generator: torch.Generator) -> None:
    tasks, rule = WHITENED[name].sample(16, generator, dtype=torch.float64), Whitening()
    with torch.no_grad():
        losses, carry = unroll(rule, {}, tasks, start(rule, tasks), 2)
    assert bool(carry.alive.all())
    assert float(losses[1].max()) < 1e-10
    assert float(carry.initial.min()) > 0.1


def test_without_whitening_the_same_step_does_not(generator: torch.Generator) -> None:
    tasks, rule = Regression().sample(16, generator, dtype=torch.float64), Whitening()
    with torch.no_grad():
        carry = start(rule, tasks)
        plain = GradientDescent(1e-4)
        losses, _ = unroll(plain, {}, tasks, carry, 2)
    assert float(losses[1].min()) > 1


@pytest.mark.parametrize("rule", [GradientDescent(0.02), Momentum(0.01), Adam(0.01)], ids=lambda r: type(r).__name__)
def test_classical_rules_are_permutation_equivariant(rule: Rule, generator: torch.Generator) -> None:
    tasks = Regression(width=5, data="gaussian", activation="relu", action="scaling").sample(
        3, generator, dtype=torch.float64
    )
    order = torch.tensor([3, 1, 4, 0, 2])

    def permute(params: Params) -> Params:
        return {"layers.0.weight": params["layers.0.weight"][:, order], "layers.1.weight":
                params["layers.1.weight"][:, :, order]}  # fmt: skip

    def change(params: Params) -> Params:
        with torch.no_grad():
            carry = start(rule, tasks)._replace(params=params)
            after = unroll(rule, {}, tasks, carry, 3)[1].params
        return {name: after[name] - params[name] for name in params}

    laws.permutation_equivariance(change, tasks.params, permute)
    assert bool((flatten(change(tasks.params)).norm(dim=1) > 1e-4).all())


def test_the_adam_whose_steps_fall_remembers_gradients_for_10_steps_and_squares_for_20() -> None:
    """After t steps without one, of a first gradient ``d^t (1 - d) / (1 - d^(t + 1))`` is left, d = 1 - 1 / memory."""
    rule, t = update_named("decaying_adam", 1, 10**9, 0.0, 0.5), 4
    g = torch.full((1, 2), 3.0, dtype=torch.float64)
    state, update = rule.init({"w": g}, Symmetry(())), g
    for step in range(t + 1):
        seen = Observation({"w": g}, {"w": g if step == 0 else 0 * g}, g[:, 0], torch.tensor([step]))
        proposal, state = rule(seen, state)
        update = proposal.update["w"]

    def left(memory: int) -> float:
        d = 1 - 1 / memory
        return d**t * (1 - d) / (1 - d ** (t + 1))

    laws.assert_close(update, torch.full_like(g, -0.5 * left(10) / left(20) ** 0.5), 1e-7)
