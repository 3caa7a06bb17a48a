"""Backtracking: whatever a rule proposes, its updates do not raise the loss, and harmless ones pass as they are."""

from collections.abc import Callable
from math import inf

import laws
import network_cases
import pytest
import torch
from network_cases import RELU, parameters
from torch import Tensor

from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.errors import UserError
from meta_teleport.evaluation.controls import RandomElements, WithoutElements
from meta_teleport.learned.lstm import LSTMRule, LSTMState
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.params import Params
from meta_teleport.rules.backtracking import TRIALS, lengths
from meta_teleport.rules.rule import Observation, Proposal, initialized, shapes_of
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.regression import Regression
from meta_teleport.teleportation import acceptance
from meta_teleport.teleportation.acceptance import LIMIT, is_safe

FAMILY = Regression(width=4, data="gaussian", activation="asinh")
FACTORS = (1.0, -1e3, -3.0, -1e-3)


class Scaled(LSTMRule):
    """Proposes factors ``(tasks,)`` times the gradient, and an element: uphill for a positive factor."""

    factors = torch.tensor(0.0)

    def propose(self, observation: Observation, state: LSTMState) -> tuple[Proposal, LSTMState]:
        update = {name: self.factors.view(-1, 1, 1) * g for name, g in observation.gradients.items()}
        ones = observation.loss.new_ones(len(observation.loss), 4, 4)
        return Proposal(update, (0.01 * ones,)), state


def sample(generator: torch.Generator) -> Tasks:
    return FAMILY.sample(len(FACTORS), generator, dtype=torch.float64)


def losses_of(tasks: Tasks, factors: Tensor, backtracking: bool, steps: int = 20) -> Tensor:
    """Losses ``(1 + steps, tasks)``."""
    rule = Scaled(shapes_of(tasks.params, tasks.symmetry), safeguard=False)
    rule.factors, rule.backtracking = factors, backtracking
    carry = start(rule, tasks)
    return torch.cat([carry.initial.unsqueeze(0), unroll(rule, {}, tasks, carry, steps)[0]])


def test_no_step_raises_the_loss(generator: torch.Generator) -> None:
    tasks, factors = sample(generator), torch.tensor(FACTORS).double()
    followed = losses_of(tasks, factors, True)
    assert bool((followed[1:] <= followed[:-1] * (1 + 1e-12)).all())
    laws.assert_close(followed[:, 0], followed[:1, 0].expand(21), 1e-12)
    assert bool((followed[-1, 1:] < 0.9 * followed[0, 1:]).all())
    free = losses_of(tasks, factors, False)
    assert float(free[:, 0].max()) > 1.1 * float(free[0, 0])  # uphill; the second fails at once, and stays


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_a_teleport_does_not_raise_the_loss(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Regression(width=8, data="gaussian").sample(4, torch.Generator().manual_seed(0), dtype=dtype)
    with initialized(0):
        whitening = {
            "bases": ["activations"],
            "init_coefficients": {"activations": -1.0},
            "size": 8.0,
            "warmup_teleports": 2,
        }
        rule = Equivariant(start=-3.0, backtracking=True, **whitening).to(dtype)

    def followed() -> tuple[Tensor, Tensor]:
        """The largest ratio of a loss to the one before, and the last losses ``(tasks,)``."""
        with torch.no_grad():
            losses, carry = unroll(rule, dict(rule.named_parameters()), tasks, start(rule, tasks), 60)
        losses = torch.cat([carry.initial.unsqueeze(0), losses])
        return (losses[1:] / losses[:-1]).amax(0), losses[-1]

    rises, last = followed()
    assert float(rises.max()) <= 1 + LIMIT
    monkeypatch.setattr(acceptance, "is_safe", lambda before, after, ceiling: is_safe(before, after))
    rises_free, last_free = followed()
    assert float(rises_free.min()) > 1.5 and float(last_free.max()) > 100 * float(last.max())


def test_what_does_not_rise_passes_bit_for_bit(generator: torch.Generator) -> None:
    tasks, short = sample(generator), torch.full((len(FACTORS),), -1e-3).double()
    laws.same_bits(losses_of(tasks, short, True), losses_of(tasks, short, False))


def test_meta_gradients_take_the_length_as_a_constant(generator: torch.Generator) -> None:
    tasks = sample(generator)
    found, expected = (torch.tensor(FACTORS).double().requires_grad_() for _ in range(2))
    losses_of(tasks, found, True, 1)[1].sum().backward()
    step = torch.zeros(tasks.count, dtype=torch.long)
    point = {name: p.clone().requires_grad_() for name, p in tasks.params.items()}
    loss = tasks.loss(point, step)
    gradients = dict(zip(point, torch.autograd.grad(loss.sum(), list(point.values())), strict=True))
    update = {name: torch.tensor(FACTORS).double().view(-1, 1, 1) * g for name, g in gradients.items()}
    length = lengths(update, tasks.params, gradients, loss.detach(), lambda p: tasks.loss(p, step))
    assert float(length[0]) == 0 and 0 < float(length[1]) < 1 == float(length[3])
    moved = {name: tasks.params[name] + (length * expected).view(-1, 1, 1) * g for name, g in gradients.items()}
    tasks.loss(moved, step).sum().backward()
    assert found.grad is not None and expected.grad is not None
    laws.assert_close(found.grad[1:], expected.grad[1:], 1e-9)
    laws.assert_close(found.grad[:1], torch.zeros(1).double(), 1e-12)
    laws.must_fail(laws.assert_close, found.grad[1:], expected.grad[1:] / length[1:], 1e-3)


def parabola(params: Params) -> Tensor:
    return params["w"].square().sum(1)


def tried(factor: float, loss_at: Callable[[Params], Tensor] = parabola) -> tuple[float, int]:
    """The length found for an update of ``factor`` times w, from w = 1, and how often the loss was evaluated."""
    calls = []

    def counted(params: Params) -> Tensor:
        calls.append(params)
        return loss_at(params)

    w = {"w": torch.ones(1, 1).double()}
    found = lengths({"w": factor * w["w"]}, w, {"w": 2 * w["w"]}, torch.ones(1).double(), counted)
    return float(found), len(calls)


def test_on_a_parabola_one_more_evaluation_finds_its_minimum() -> None:
    assert tried(-1.9) == (1.0, 1)
    assert tried(-5.0) == (pytest.approx(0.2), 2)
    assert tried(-2.1) == (pytest.approx(1 / 2.1), 2)


def test_a_step_that_never_falls_is_not_made() -> None:
    assert tried(1.0) == (0.0, TRIALS)
    assert tried(-1.0, lambda params: torch.full((1,), torch.nan).double()) == (0.0, TRIALS)
    assert tried(-1e5)[0] == pytest.approx(1e-5)


def test_where_the_loss_is_not_a_number_the_next_length_is_a_hundredth() -> None:
    def near(params: Params) -> Tensor:
        return torch.where(params["w"][:, 0].abs() < 10, parabola(params), torch.nan)

    assert tried(-1e3, near) == (pytest.approx(1e-3), 3)


def test_uphill_on_a_loss_that_flattens_lengths_are_halved_until_seven_have_been_tried() -> None:
    """There the parabola has a maximum, further off than half of the length, which says nothing of a minimum."""
    seen = []

    def flattening(params: Params) -> Tensor:
        seen.append(float(params["w"]) - 1)
        return 1 + params["w"][:, 0].log()

    assert tried(1.0, flattening) == (0.0, 7)
    assert seen == [0.5**n for n in range(7)]


def test_every_task_has_a_length_of_its_own(generator: torch.Generator) -> None:
    tasks, factors = sample(generator), torch.tensor(FACTORS).double()
    together = losses_of(tasks, factors, True)
    for i in range(tasks.count):
        alone = losses_of(tasks.select(torch.tensor([i])), factors[i : i + 1], True)
        laws.assert_close(together[:, i], alone[:, 0], 1e-9)


def long_steps(*bases: str) -> Equivariant:
    with initialized(1):
        return Equivariant("gd", lr=30.0, bases=list(bases), backtracking=True).double()


@pytest.mark.parametrize("bases", [(), ("symmetric",)])
def test_on_a_model_of_ones_own_the_loss_does_not_rise(bases: tuple[str, ...]) -> None:
    def followed(backtracking: bool, lr: float) -> list[float]:
        model = RELU.build()
        rule = long_steps(*bases)
        rule.backtracking = backtracking
        optimizer = rule.optimizer(model, symmetry=RELU.symmetry, lr=lr)

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = network_cases.loss(model, RELU.batch(0))
            value.backward()
            return value

        return [float(optimizer.step(closure).detach()) for _ in range(12)]

    for lr in (1.0, 100.0):
        values = followed(True, lr)
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.9 * values[0]
    with pytest.warns(UserWarning, match="the loss is inf: this step is skipped"):
        assert followed(False, 1.0)[-1] == inf


@pytest.mark.parametrize("update", ["polyak", "adam"])
def test_the_optimizer_takes_the_steps_of_unroll(update: str) -> None:
    family = Regression(6, 2, points=16, data="gaussian", activation="leaky_relu", action="scaling")
    tasks = family.sample(1, torch.Generator().manual_seed(3), dtype=torch.float64)
    with initialized(2):
        rule = Equivariant(update, hidden_size=8, start=3.0, backtracking=True).double()
    losses, carry = unroll(rule, dict(rule.named_parameters()), tasks, start(rule, tasks), 5)
    assert bool((torch.cat([carry.initial.unsqueeze(0), losses]).diff(dim=0) <= 0).all())
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 6, bias=False), torch.nn.LeakyReLU(0.1), torch.nn.Linear(6, 6, bias=False)
    ).double()
    for p, value in zip(model.parameters(), tasks.params.values(), strict=True):
        p.data.copy_(value[0])
    inputs, labels = (tasks.rows(name, torch.zeros(1).long())[0] for name in ("inputs", "labels"))
    optimizer = rule.optimizer(model, inputs)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (model(inputs) - labels).square().sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    moved = dict(zip(tasks.params, (p.unsqueeze(0) for p in parameters(model).values()), strict=True))
    laws.params_close(moved, {name: p.detach() for name, p in carry.params.items()}, 1e-9)


def test_an_update_that_is_not_finite_leaves_the_model_alone() -> None:
    model = RELU.build()
    rule = Equivariant("gd", lr=torch.inf, bases=[], backtracking=True).double()
    optimizer = rule.optimizer(model, symmetry=RELU.symmetry)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = network_cases.loss(model, RELU.batch(0))
        value.backward()
        return value

    optimizer.step(closure)
    laws.same_bits(parameters(model), parameters(RELU.build()))


def test_a_rule_that_backtracks_needs_a_closure() -> None:
    model = RELU.build()
    optimizer = long_steps().optimizer(model, symmetry=RELU.symmetry)
    with pytest.raises(UserError, match=r"call step\(closure\)"):
        optimizer.step(network_cases.loss(model, RELU.batch(0)))


def test_controls_backtrack_as_their_rule_does() -> None:
    rule = long_steps()
    assert WithoutElements(rule).backtracking and RandomElements(rule, torch.Generator()).backtracking
    assert not rule.over(Equivariant("gd")).backtracking
    assert not WithoutElements(Equivariant("gd")).backtracking
