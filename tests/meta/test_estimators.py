"""Truncated back-propagation: the meta-losses by hand, and tasks that fail without poisoning the others."""

from typing import Any

import laws
import pytest
import torch
from torch import Tensor, nn

from meta_teleport.meta.estimators import end_log_loss, loss_sum, mean_increase, mean_log_loss, truncated_bptt
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.params import Params
from meta_teleport.rules.classical import NoState
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.regression import Regression

FAMILY = Regression(width=3, data="gaussian", activation="asinh")
GOOD = [0, 2, 3]


class Spoiled(Rule):
    """Gradient descent with a learned step; where a task's first loss is ``marked`` the step is multiplied by
    ``factor``, or (``steep``) depends on the meta-parameter by an infinite slope while every loss is finite."""

    def __init__(self, marked: float, factor: float = 1.0, steep: bool = False) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.tensor(-7.0, dtype=torch.float64))
        self.marked, self.factor, self.steep = marked, factor, steep

    def init(self, params: Params, symmetry: Symmetry) -> NoState:
        return NoState()

    def forward(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
        at = (observation.loss - self.marked).abs() < 1e-12
        step = self.log_step.exp() * torch.where(at, self.factor, 1.0)
        if self.steep:
            change = self.log_step - self.log_step.detach()
            step = step + torch.where(at, change, 1.0).abs().sqrt() - torch.where(at, 0.0, 1.0)
        return Proposal({name: -step[:, None, None] * g for name, g in observation.gradients.items()}), state


def tasks_of(generator: torch.Generator) -> tuple[Tasks, Tensor]:
    tasks = FAMILY.sample(4, generator, dtype=torch.float64)
    return tasks, tasks.loss(tasks.params, torch.zeros(4, dtype=torch.long))


def estimate(rule: Rule, tasks: Tasks) -> Any:
    return truncated_bptt(rule, dict(rule.named_parameters()), tasks, start(rule, tasks), 3, mean_log_loss)


def test_objectives_by_hand() -> None:
    losses = torch.tensor([[4.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    initial = torch.tensor([8.0, 1.0], dtype=torch.float64)
    assert loss_sum(losses, initial).tolist() == [6.0, 1.0]
    tiny = torch.finfo(torch.float64).tiny
    expected = torch.tensor([(0.5 * 0.25) ** 0.5, tiny**0.5], dtype=torch.float64).log()
    torch.testing.assert_close(mean_log_loss(losses, initial), expected)


def test_the_end_of_a_window_by_hand() -> None:
    losses = torch.arange(20.0, 0.0, -1, dtype=torch.float64).unsqueeze(1)
    initial = torch.tensor([40.0], dtype=torch.float64)
    expected = torch.tensor([2.0 / 40**2], dtype=torch.float64).log() / 2
    torch.testing.assert_close(end_log_loss(losses, initial), expected)
    torch.testing.assert_close(end_log_loss(losses[:3], initial), (losses[2] / initial).log())
    torch.testing.assert_close(end_log_loss(losses[-3:], initial, floor=0.1), torch.tensor([0.1]).double().log())


def test_losses_below_the_floor_count_as_the_floor() -> None:
    losses = torch.tensor([[4.0], [1e-300], [0.5]], dtype=torch.float64, requires_grad=True)
    initial = torch.tensor([8.0], dtype=torch.float64)
    value = mean_log_loss(losses, initial, floor=0.125)
    torch.testing.assert_close(value, torch.tensor([0.5 * 0.125 * 0.125], dtype=torch.float64).log() / 3)
    assert float(mean_log_loss(losses.detach(), initial)) < -200
    value.sum().backward()
    assert losses.grad is not None and losses.grad.flatten().tolist() == [1 / 12, 0, 0]


def test_the_penalty_by_hand() -> None:
    losses = torch.tensor([[4.0, 1.0], [16.0, 0.5], [2.0, 0.5]], dtype=torch.float64)
    initial, before = (torch.tensor(row, dtype=torch.float64) for row in ([8.0, 1.0], [2.0, 1.0]))
    expected = torch.tensor([2.0 * 4.0, 1.0], dtype=torch.float64).log() / 3
    torch.testing.assert_close(mean_increase(losses, initial, before), expected)
    floored = torch.tensor([2.0, 1.0], dtype=torch.float64).log() / 3
    torch.testing.assert_close(mean_increase(losses, initial, before, floor=1.0), floored)


def test_the_penalty_sees_the_loss_before_the_window(generator: torch.Generator) -> None:
    tasks, _ = tasks_of(generator)
    rule = Spoiled(-1.0)
    rule.log_step.data.fill_(-1.0)
    phi = {"log_step": rule.log_step.detach()}
    losses, _ = unroll(rule, phi, tasks, start(rule, tasks), 3)
    assert bool((losses[2] > losses[1]).any())
    whole = torch.cat([start(rule, tasks).initial[None], losses])
    rises = (whole[1:].log() - whole[:-1].log()).clamp(min=0)
    carry = unroll(rule, phi, tasks, start(rule, tasks), 1)[1]
    for steps, at, part in ((3, start(rule, tasks), rises), (2, carry, rises[1:])):
        plain = truncated_bptt(rule, phi, tasks, at, steps, mean_log_loss)
        found = truncated_bptt(rule, phi, tasks, at, steps, mean_log_loss, penalty=mean_increase)
        laws.assert_close((found.meta_loss - plain.meta_loss)[None], part.mean()[None], 1e-9)
        laws.must_fail(laws.assert_close, (found.meta_loss - plain.meta_loss)[None], part[1:].mean()[None], 1e-3)


@pytest.mark.parametrize("steep", [False, True])
def test_a_failing_or_overflowing_task_is_left_out_and_counted(steep: bool, generator: torch.Generator) -> None:
    tasks, initial = tasks_of(generator)
    rule = Spoiled(float(initial[1]), 1.0 if steep else 1e12, steep)
    found = estimate(rule, tasks)
    alone = estimate(rule, tasks.select(torch.tensor(GOOD)))
    assert found.failed == 1 and found.carry.alive.tolist() == [True, False, True, True]
    assert alone.failed == 0
    laws.assert_close(found.meta_loss[None], alone.meta_loss[None], 1e-12)
    laws.assert_close(found.gradient["log_step"][None], alone.gradient["log_step"][None], 1e-12)


def test_the_spoiled_task_would_have_spoiled_the_rest(generator: torch.Generator) -> None:
    tasks, initial = tasks_of(generator)
    healthy = estimate(Spoiled(-1.0), tasks)
    assert healthy.failed == 0 and torch.isfinite(healthy.gradient["log_step"])
    rule = Spoiled(float(initial[1]), steep=True)
    step = rule(Observation(tasks.params, tasks.params, initial, initial), NoState())[0].update["layers.0.weight"]
    (slope,) = torch.autograd.grad(step.sum(), rule.log_step)
    assert not torch.isfinite(slope)
