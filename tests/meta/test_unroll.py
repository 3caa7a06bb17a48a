"""One window: pure, the same however it is cut, with exact meta-gradients, and tasks that fail alone."""

from dataclasses import replace
from typing import Any

import laws
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from meta_teleport.learned.lstm import LSTMRule, LSTMUpdateTele
from meta_teleport.meta.unroll import Carry, start, unroll
from meta_teleport.params import Params, axpy, flatten
from meta_teleport.rules.classical import GradientDescent
from meta_teleport.rules.rule import Observation, Proposal, Rule, initialized, shapes_of
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.regression import Regression

FAMILIES = {
    "a": Regression(width=3, data="gaussian", activation="asinh"),
    "a-deep": Regression(width=3, depth=3, data="gaussian", activation="asinh", bias=True),
    "b-deep": Regression(width=4, depth=3, points=3, data="gaussian", activation="tanh", action="pseudo_inverse"),
    "batches": Regression(width=3, points=9, batch=3, data="gaussian", activation="asinh"),
    "scaling": Regression(width=3, points=8, data="gaussian", activation="leaky_relu", action="scaling"),
}


def sample(name: str, generator: torch.Generator, count: int = 4) -> Tasks:
    return FAMILIES[name].sample(count, generator, dtype=torch.float64)


def small(tasks: Tasks, seed: int = 0, **options: Any) -> tuple[LSTMRule, Params]:
    """A rule of hidden size 4 and meta-parameters at which every head does something."""
    published = {"element_size": "fixed", "size": 0.1, "features": "raw", "gradient_term": False, "safeguard": False}
    with initialized(seed):
        rule = LSTMUpdateTele(shapes_of(tasks.params, tasks.symmetry), **{"hidden_size": 4, **published, **options})
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: 0.3 * torch.randn(p.shape, generator=generator).double() for n, p in rule.named_parameters()}
    return rule.double(), drawn


def reference(rule: Rule, phi: Params, tasks: Tasks, steps: int, second_order: bool) -> Tensor:
    """Algorithm 1 written out once more, without windows, masks or aliases: every gradient from a copy."""
    params, state = tasks.params, rule.init(tasks.params, tasks.symmetry)
    losses = []
    for t in range(steps):
        step = torch.full((tasks.count,), t)
        point = {name: p + 0 if p.requires_grad else p.clone().requires_grad_() for name, p in params.items()}
        loss = tasks.loss(point, step)
        gradients = torch.autograd.grad(loss.sum(), list(point.values()), create_graph=True)
        if not second_order:
            gradients, loss = tuple(g.detach() for g in gradients), loss.detach()
        observation = Observation(params, dict(zip(params, gradients, strict=True)), loss, step)
        proposal, state = functional_call(rule, phi, (observation, state))
        params = axpy(1.0, proposal.update, params)
        params = tasks.symmetry.act(params, tasks.symmetry.exp(proposal.algebra), tasks.inputs(step))
        losses.append(tasks.loss(params, step + 1))
    return torch.stack(losses)


def published_windows(rule: Rule, phi: Params, tasks: Tasks, steps: int, every: int) -> list[Tensor]:
    """The losses that the authors' code sums into one meta-loss, per window. A window ends at each step but the first
    whose number ``every`` divides: after the loss and the update, before the element, which is then proposed from the
    state as it was before that step. (Their meta-step lies between; here phi stays, so that losses can be compared.)"""
    params, state, windows, summed = tasks.params, rule.init(tasks.params, tasks.symmetry), [], []
    for t in range(steps):
        step = torch.full((tasks.count,), t)
        summed.append(tasks.loss(params, step))
        point = {name: p.detach().requires_grad_() for name, p in params.items()}
        loss = tasks.loss(point, step)
        gradients = dict(zip(point, torch.autograd.grad(loss.sum(), list(point.values())), strict=True))
        observation = Observation(point, gradients, loss, step).detached()
        proposal, after = functional_call(rule, phi, (observation, state))
        params = axpy(1.0, proposal.update, params)
        if t and t % every == 0:
            windows.append(torch.stack(summed))
            params, state, update, summed = *tree_map(Tensor.detach, (params, state, after.update)), []
            proposal, after = functional_call(rule, phi, (observation, state))
            after = after._replace(update=update)
        params, state = tasks.symmetry.act(params, tasks.symmetry.exp(proposal.algebra), tasks.inputs(step)), after
    return windows


def meta_gradient(losses: Tensor, phi: Params) -> Params:
    gradients = torch.autograd.grad(losses.mean(), list(phi.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(phi.items(), gradients, strict=True)}


def trainable(phi: Params) -> Params:
    return {name: p.clone().requires_grad_() for name, p in phi.items()}


def one_row(params: Params) -> Tensor:
    return torch.cat([p.flatten() for p in params.values()])[None]


def test_is_pure(generator: torch.Generator) -> None:
    tasks = sample("a-deep", generator)
    rule, phi = small(tasks)
    carry = start(rule, tasks)
    before = tree_map(Tensor.clone, [phi, tasks.params, tasks.data, carry, dict(rule.named_parameters())])
    for differentiable in (False, True):
        with torch.set_grad_enabled(differentiable):
            first, _ = unroll(rule, trainable(phi), tasks, carry, 3)
            second, _ = unroll(rule, trainable(phi), tasks, carry, 3)
        assert torch.equal(first, second)
    after = [phi, tasks.params, tasks.data, carry, dict(rule.named_parameters())]
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(before), tree_leaves(after), strict=True))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("second_order", [False, True])
def test_losses_are_the_same_with_and_without_meta_gradients(
    name: str, second_order: bool, generator: torch.Generator
) -> None:
    tasks = sample(name, generator)
    rule, phi = small(tasks)
    with torch.no_grad():
        plain, carry = unroll(rule, phi, tasks, start(rule, tasks), 5)
    losses, other = unroll(rule, trainable(phi), tasks, start(rule, tasks), 5, second_order=second_order)
    laws.assert_close(losses, plain, 1e-12)
    laws.params_close(other.params, carry.params, 1e-12)
    assert not any(t.requires_grad for t in tree_leaves(other))


@pytest.mark.parametrize("name", FAMILIES)
def test_two_windows_of_four_are_one_of_eight(name: str, generator: torch.Generator) -> None:
    tasks = sample(name, generator)
    rule, phi = small(tasks)
    with torch.no_grad():
        whole, end = unroll(rule, phi, tasks, start(rule, tasks), 8)
        first, carry = unroll(rule, phi, tasks, start(rule, tasks), 4)
        second, last = unroll(rule, phi, tasks, carry, 4)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(end), tree_leaves(last), strict=True))
    assert last.step.tolist() == [8] * 4


def test_losses_before(generator: torch.Generator) -> None:
    tasks = sample("a", generator)
    rule, phi = small(tasks)
    with torch.no_grad():
        after, _ = unroll(rule, phi, tasks, start(rule, tasks), 5)
        before, _ = unroll(rule, phi, tasks, start(rule, tasks), 5, losses_before=True)
    assert torch.equal(before[1:], after[:-1])
    assert torch.equal(before[0], start(rule, tasks).initial)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("second_order", [False, True])
def test_a_window_as_long_as_the_horizon_is_full_back_propagation(
    name: str, second_order: bool, generator: torch.Generator
) -> None:
    tasks = sample(name, generator)
    rule, phi = small(tasks)
    ours, theirs, cut = trainable(phi), trainable(phi), trainable(phi)
    losses, _ = unroll(rule, ours, tasks, start(rule, tasks), 6, second_order=second_order)
    expected = reference(rule, theirs, tasks, 6, second_order)
    laws.assert_close(losses, expected, 1e-12)
    gradient = one_row(meta_gradient(losses, ours))
    laws.assert_close(gradient, one_row(meta_gradient(expected, theirs)), 1e-11)
    first, carry = unroll(rule, cut, tasks, start(rule, tasks), 3, second_order=second_order)
    second, _ = unroll(rule, cut, tasks, carry, 3, second_order=second_order)
    truncated = one_row(meta_gradient(torch.cat([first, second]), cut))
    laws.must_fail(laws.assert_close, truncated, gradient, 1e-6)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"networks": "one", "element_size": "learned", "features": "normalized",
                                          "gradient_term": True}], ids=["published", "better"])  # fmt: skip
def test_meta_gradient_equals_central_differences(
    name: str, options: dict[str, Any], generator: torch.Generator
) -> None:
    tasks = sample(name, generator)
    rule, phi = small(tasks, **options)

    def differences(direction: Params, h: float = 1e-6) -> Tensor:
        """Off by 1e-7 at most: the third derivatives are up to 6e4 times the first; rounding leaves less than 1e-9."""
        with torch.no_grad():
            ends = [unroll(rule, axpy(s * h, direction, phi), tasks, start(rule, tasks), 4)[0] for s in (1.0, -1.0)]
        return (ends[0].mean() - ends[1].mean()) / (2 * h)

    expected, found, detached = [], [], []
    for second_order, to in ((True, found), (False, detached)):
        leaves = trainable(phi)
        gradient = meta_gradient(
            unroll(rule, leaves, tasks, start(rule, tasks), 4, second_order=second_order)[0], leaves
        )
        random = torch.Generator().manual_seed(1)
        for chosen in phi:  # one random direction in every tensor
            direction = {n: torch.zeros_like(p) for n, p in phi.items()}
            direction[chosen] = torch.randn(phi[chosen].shape, generator=random, dtype=torch.float64)
            to.append((direction[chosen] * gradient[chosen]).sum())
            if second_order:
                expected.append(differences(direction))
    row = torch.stack(expected)[None]
    laws.assert_close(torch.stack(found)[None], row, 1e-5)
    laws.must_fail(laws.assert_close, torch.stack(detached)[None], row, 1e-5)


def test_the_element_of_the_last_step_gets_no_meta_gradient(generator: torch.Generator) -> None:
    tasks = sample("a", generator)
    rule, phi = small(tasks)
    for steps, expected in ((1, False), (2, True)):
        leaves = trainable(phi)
        gradient = meta_gradient(unroll(rule, leaves, tasks, start(rule, tasks), steps)[0], leaves)
        size = max(float(gradient[name].abs().max()) for name in rule.meta_groups()["element"])
        assert (size > 1e-9) == expected, (steps, size)


@pytest.mark.parametrize("name", FAMILIES)
def test_where_the_published_code_cuts(name: str, generator: torch.Generator) -> None:
    """Its first window is ours of one step more. Its others are ours but for the element of the step at the cut, which
    gets credit there and none here."""
    tasks = sample(name, generator)
    rule, phi = small(tasks)
    groups = rule.meta_groups()
    theirs = trainable(phi)
    windows = published_windows(rule, theirs, tasks, 7, every=3)
    assert [len(losses) for losses in windows] == [4, 3]
    expected = [meta_gradient(losses, theirs) for losses in windows]
    carry, found = start(rule, tasks), []
    for steps, losses in zip((4, 3), windows, strict=True):
        leaves = trainable(phi)
        own, carry = unroll(rule, leaves, tasks, carry, steps, losses_before=True)
        laws.assert_close(own, losses, 1e-12)
        found.append(meta_gradient(own, leaves))
    laws.assert_close(one_row(found[0]), one_row(expected[0]), 1e-11)
    chosen = [
        [one_row({n: g[n] for n in groups[key]}) for g in (found[1], expected[1])] for key in ("update", "element")
    ]
    laws.assert_close(*chosen[0], 1e-11)
    laws.must_fail(laws.assert_close, *chosen[1], 1e-2)
    short = trainable(phi)
    losses, _ = unroll(rule, short, tasks, start(rule, tasks), 3, losses_before=True)
    laws.must_fail(laws.assert_close, one_row(meta_gradient(losses, short)), one_row(expected[0]), 1e-2)


def test_a_failing_task_leaves_the_meta_gradient_of_the_others_alone(generator: torch.Generator) -> None:
    tasks = sample("a", generator)
    rule, phi = small(tasks)
    params = {n: torch.cat([1e8 * p[:1], p[1:]]) for n, p in tasks.params.items()}
    spoiled = replace(tasks, params=params)
    carry = start(rule, spoiled)
    assert bool(carry.alive.all())
    carry = carry._replace(initial=torch.cat([torch.full((1,), 1e-3).double(), carry.initial[1:]]))
    gradients = []
    for batch, at in ((spoiled, carry), (tasks.select(torch.arange(1, 4)), None)):
        leaves = trainable(phi)
        losses, _ = unroll(rule, leaves, batch, at or start(rule, batch), 4, second_order=True)
        gradients.append(one_row(meta_gradient(losses[:, -3:], leaves)))
    laws.assert_close(gradients[0], gradients[1], 1e-11)


def test_the_probe_sees_every_group_action(generator: torch.Generator) -> None:
    tasks = sample("a-deep", generator)
    rule, phi = small(tasks)
    seen: list[tuple[Tensor, float]] = []

    def probe(shown: Tasks, before: Params, after: Params, proposal: Proposal, step: Tensor) -> None:
        assert shown is tasks and len(proposal.algebra) == 2
        change = tasks.loss(after, step) / tasks.loss(before, step) - 1
        moved = (flatten(after) - flatten(before)).norm(dim=1).min()
        seen.append((step, float(moved)))
        assert float(change.abs().max()) < 1e-9

    with torch.no_grad():
        unroll(rule, phi, tasks, start(rule, tasks), 3, probe=probe)
        gd = GradientDescent(1e-3)
        unroll(gd, {}, tasks, start(gd, tasks), 3, probe=probe)
    assert [step.tolist() for step, _ in seen] == [[0] * 4, [1] * 4, [2] * 4]
    assert min(moved for _, moved in seen) > 1e-3


def test_the_carry_has_the_task_dimension_in_front(generator: torch.Generator) -> None:
    tasks = sample("a", generator)
    rule, phi = small(tasks, safeguard=True)
    with torch.no_grad():
        carry: Carry = unroll(rule, phi, tasks, start(rule, tasks), 2)[1]
    assert len(tree_leaves(carry)) > 10
    assert all(t.shape[0] == 4 for t in tree_leaves(carry))


class Further(Rule):
    """Multiplies the parameters by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def init(self, params: Params, symmetry: Symmetry) -> tuple[()]:
        return ()

    def forward(self, observation: Observation, state: tuple[()]) -> tuple[Proposal, tuple[()]]:
        return Proposal({name: (self.factor - 1) * p for name, p in observation.params.items()}), state


@pytest.mark.parametrize(("factor", "alive"), [(0.99e6, True), (1.01e6, False)])
def test_a_task_has_failed_when_its_loss_is_a_million_times_the_first(factor: float, alive: bool) -> None:
    """The loss of an ellipse goes with the square of the point."""
    tasks = Functions("ellipse").sample(3, torch.Generator().manual_seed(0), dtype=torch.float64)
    uphill = Further(factor**0.5)
    losses, carry = unroll(uphill, {}, tasks, start(uphill, tasks), 1)
    assert carry.alive.tolist() == [alive] * 3
    laws.assert_close(losses[0], carry.initial * (factor if alive else 1.0), 1e-9)
