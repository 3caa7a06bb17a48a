"""A second opinion on meta-gradients: learn2learn's MAML differentiates through the same steps."""

import contextlib
import io
import warnings
from typing import Any, NamedTuple

import laws
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from meta_teleport.meta.unroll import start, unroll
from meta_teleport.models import MLP
from meta_teleport.params import Params, per_task
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.regression import Regression, RegressionTasks

FAMILY = Regression(width=4, depth=3, data="gaussian", bias=True, activation="asinh")
LR, STEPS = 0.03, 4


class Nothing(NamedTuple):
    """No state."""


class LearnedRate(Rule):
    """Gradient descent whose step size is the one meta-parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.lr = nn.Parameter(torch.tensor(LR, dtype=torch.float64))

    def init(self, params: Params, symmetry: Symmetry) -> Nothing:
        return Nothing()

    def forward(self, observation: Observation, state: Nothing) -> tuple[Proposal, Nothing]:
        return Proposal({n: -per_task(self.lr, g) * g for n, g in observation.gradients.items()}), state


def maml() -> Any:
    """learn2learn's MAML; importing it warns about old dependencies of its own and prints about gym."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import learn2learn

    return learn2learn.algorithms.MAML


def with_learn2learn(tasks: RegressionTasks, first_order: bool) -> tuple[Tensor, Tensor]:
    """The mean loss after the steps and its derivative by the step size, one task at a time."""
    lr = torch.tensor(LR, dtype=torch.float64, requires_grad=True)
    x, y = tasks.data["inputs"], tasks.data["labels"]
    losses = []
    for i in range(tasks.count):
        model = MLP((4, 4, 4, 4), "asinh", bias=True).double()
        own = {n: p[i].clone() for n, p in tasks.params.items()}
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(own[name])
        learner = maml()(model, lr=lr, first_order=first_order).clone()
        for _ in range(STEPS):
            learner.adapt(0.5 * (learner(x[i]) - y[i]).square().sum())
        losses.append(0.5 * (learner(x[i]) - y[i]).square().sum())
    loss = torch.stack(losses).mean()
    return loss.detach(), torch.autograd.grad(loss, lr)[0]


def with_unroll(tasks: RegressionTasks, second_order: bool) -> tuple[Tensor, Tensor]:
    rule = LearnedRate()
    phi = {name: p.detach().clone().requires_grad_() for name, p in rule.named_parameters()}
    losses, _ = unroll(rule, phi, tasks, start(rule, tasks), STEPS, second_order=second_order)
    loss = losses[-1].mean()
    return loss.detach(), torch.autograd.grad(loss, phi["lr"])[0]


@pytest.mark.parametrize("second_order", [True, False])
def test_meta_gradient_equals_learn2learns(second_order: bool, generator: torch.Generator) -> None:
    tasks = FAMILY.sample(3, generator, dtype=torch.float64)
    loss, ours = with_unroll(tasks, second_order)
    expected, theirs = with_learn2learn(tasks, first_order=not second_order)
    laws.assert_close(loss[None], expected[None], 1e-12)
    laws.assert_close(ours[None], theirs[None], 1e-10)


def test_the_two_orders_differ(generator: torch.Generator) -> None:
    tasks = FAMILY.sample(3, generator, dtype=torch.float64)
    detached, full = (with_unroll(tasks, order)[1][None] for order in (False, True))
    laws.must_fail(laws.assert_close, detached, full, 1e-3)


def test_the_problem_is_the_same(generator: torch.Generator) -> None:
    tasks = FAMILY.sample(2, generator, dtype=torch.float64)
    one = {n: p[1] for n, p in tasks.params.items()}
    outputs = functional_call(FAMILY.model, one, (tasks.data["inputs"][1],))
    by_hand = 0.5 * (outputs - tasks.data["labels"][1]).square().sum()
    laws.assert_close(tasks.loss(tasks.params, torch.zeros(2).long())[1:], by_hand[None], 1e-12)
