"""A task that blows up fails alone: the others do not notice, and it stays where it was."""

from dataclasses import replace
from typing import Any

import laws
import pytest
import torch

from meta_teleport.meta.unroll import start, unroll
from meta_teleport.params import Params, per_task
from meta_teleport.rules.classical import Adam, GradientDescent, Momentum
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.symmetry.symmetry import Element, Symmetry
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.regression import Regression

FAMILIES = {
    "a": Regression(width=3, data="gaussian", activation="asinh"),
    "a-deep": Regression(width=3, depth=3, data="gaussian", activation="asinh", bias=True),
    "b-deep": Regression(width=4, depth=3, points=3, data="gaussian", activation="tanh", action="pseudo_inverse"),
}


def sample(name: str, generator: torch.Generator) -> Tasks:
    return FAMILIES[name].sample(4, generator, dtype=torch.float64)


BLOW_UPS = [3e3, 1e60, float("inf"), float("nan")]


@pytest.mark.parametrize("huge", BLOW_UPS)
@pytest.mark.parametrize("cls", [GradientDescent, Momentum, Adam])
@pytest.mark.parametrize("name", ["a-deep", "b-deep"])
def test_a_failing_task_fails_alone(cls: type[Rule], name: str, huge: float, generator: torch.Generator) -> None:
    tasks = sample(name, generator)
    rule = cls(torch.tensor([1e-3, huge, 1e-3, 1e-3], dtype=torch.float64))
    good = torch.tensor([0, 2, 3])
    with torch.no_grad():
        losses, carry = unroll(rule, {}, tasks, start(rule, tasks), 8)
        others, alone = tasks.select(good), cls(1e-3)
        expected, calm = unroll(alone, {}, others, start(alone, others), 8)
        later, frozen = unroll(rule, {}, tasks, carry, 3)
    assert carry.alive.tolist() == [True, False, True, True]
    laws.assert_close(losses[:, good], expected, 1e-12)
    laws.params_close({n: p[good] for n, p in carry.params.items()}, calm.params, 1e-12)
    assert bool(torch.isfinite(torch.cat([losses, later])).all())
    assert all(bool(torch.isfinite(p).all()) for p in carry.params.values())
    assert all(torch.equal(frozen.params[n][1], p[1]) for n, p in carry.params.items())
    assert torch.equal(later[:, 1], losses[-1:, 1].expand(3))


def test_a_failing_task_stays_at_its_last_good_parameters(generator: torch.Generator) -> None:
    tasks = sample("a", generator)

    class Late(GradientDescent):
        """Task 0 explodes at step 3."""

        def forward(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
            proposal, state = super().forward(observation, state)
            bad = (observation.step == 3) & (torch.arange(4) == 0)
            factor = torch.where(bad, 1e9, 1.0).double()
            return Proposal({n: factor[:, None, None] * f for n, f in proposal.update.items()}), state

    rule, calm = Late(1e-3), GradientDescent(1e-3)
    with torch.no_grad():
        losses, carry = unroll(rule, {}, tasks, start(rule, tasks), 6)
        expected, before = unroll(calm, {}, tasks, start(calm, tasks), 3)
    assert carry.alive.tolist() == [False, True, True, True]
    assert all(torch.equal(carry.params[n][0], p[0]) for n, p in before.params.items())
    assert torch.equal(losses[:3], expected)
    assert torch.equal(losses[3:, 0], expected[-1, 0].expand(3))


def test_a_task_that_starts_without_a_finite_loss_is_not_alive(generator: torch.Generator) -> None:
    tasks = sample("a", generator)
    tasks = replace(tasks, params={n: torch.cat([p[:1] * torch.nan, p[1:]]) for n, p in tasks.params.items()})
    assert start(GradientDescent(1e-3), tasks).alive.tolist() == [False, True, True, True]


class Turning(GradientDescent):
    """Gradient descent, with elements that one task's algebra makes useless."""

    def __init__(self, bad: float) -> None:
        super().__init__(1e-3)
        self.bad = bad

    def init(self, params: Params, symmetry: Symmetry) -> Any:
        self.coordinates = [site.group.algebra_shape for site in symmetry.sites]
        return super().init(params, symmetry)

    def forward(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
        proposal, state = super().forward(observation, state)
        size = torch.full_like(observation.loss, 0.1)
        if len(size) == 4:
            size[1] = self.bad
        ones = [size.new_ones(len(size), *shape) for shape in self.coordinates]
        return Proposal(proposal.update, tuple(per_task(size, one) * one for one in ones)), state

    def transport(self, state: Any, symmetry: Symmetry, elements: tuple[Element, ...]) -> Any:
        self.acted = elements
        return super().transport(state, symmetry, elements)


@pytest.mark.parametrize("bad", [1e3, 1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_element_without_numbers_spoils_its_own_task_only(name: str, bad: float, generator: torch.Generator) -> None:
    tasks = sample(name, generator)
    good = torch.tensor([0, 2, 3])
    with torch.no_grad():
        rule = Turning(bad)
        losses, carry = unroll(rule, {}, tasks, start(rule, tasks), 4)
        acted = rule.acted
        expected, _ = unroll(rule, {}, tasks.select(good), start(rule, tasks.select(good)), 4)
    for g, inverse in acted:
        identity = torch.eye(g.shape[-1], dtype=g.dtype)
        assert torch.equal(g[1], identity) and torch.equal(inverse[1], identity) and not torch.equal(g[0], identity)
    assert carry.alive.all() and carry.rejected.tolist() == [0, 4, 0, 0]
    laws.assert_close(losses[:, good], expected, 1e-9)
