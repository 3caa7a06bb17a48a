"""The coordinate-wise LSTM: its features, what it does not depend on, what teleports do to its memory."""

from dataclasses import replace
from functools import partial
from math import e
from typing import Any

import laws
import pytest
import torch
from observations import observe
from torch import Tensor

from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.errors import UserError
from meta_teleport.learned.coordinatewise import DECAYS, Coordinatewise, CoordinatewiseState, log_and_sign
from meta_teleport.learned.lstm import LSTMUpdate
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.params import Params
from meta_teleport.rules.rule import Observation, Rule, initialized, shapes_of
from meta_teleport.rules.step_lengths import fan_in, linear_decay
from meta_teleport.tasks.factorization import Factorization
from meta_teleport.tasks.family import TaskFamily, Tasks
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.regression import Regression

FAMILIES: dict[str, TaskFamily] = {
    "data-dependent": Regression(width=4, depth=3, hidden=[5, 3], points=3, data="gaussian"),
    "scaling": Regression(width=3, depth=2, action="scaling", points=9, bias=True, data="gaussian"),
    "factors": Factorization(rank=3, inputs=6, outputs=5, points=32, batch=4),
    "numbers": Functions(),
}


def rule_with(seed: int = 0, **options: Any) -> Coordinatewise:
    """A rule whose head is drawn at random, as if it had been trained."""
    with initialized(seed):
        rule = Coordinatewise(**{"hidden_size": 6, "horizon": 10, **options}).double()
        for p in rule.head.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return rule


def tasks_of(name: str, count: int = 3) -> Tasks:
    return FAMILIES[name].sample(count, torch.Generator().manual_seed(1), dtype=torch.float64)


def updates(rule: Rule, observation: Observation, steps: int = 3) -> Params:
    """The last update of a few steps at one place."""
    state, update = rule.init(observation.params, observation.symmetry), {}
    for _ in range(steps):
        proposal, state = rule(observation, state)
        update = proposal.update
        observation = observation._replace(step=observation.step + 1)
    return update


def test_the_features_are_those_of_the_paper() -> None:
    x = torch.tensor([0.0, e**-11, -(e**-11), e**-10, e**-5, -(e**5), 1.0], dtype=torch.float64)
    expected = [[-1, 0], [-1, 1 / e], [-1, -1 / e], [-1, 1], [-0.5, 1], [0.5, -1], [0, 1]]
    laws.assert_close(log_and_sign(x), torch.tensor(expected, dtype=torch.float64), 1e-12, 1.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_zero_head_moves_nothing(name: str) -> None:
    tasks = tasks_of(name)
    with initialized(0):
        still = Coordinatewise().double()
    assert not any(bool(f.any()) for f in updates(still, observe(tasks, tasks.params)).values())
    moved = updates(rule_with(), observe(tasks, tasks.params))
    assert all(bool(f.any()) and f.shape == tasks.params[key].shape for key, f in moved.items())


@pytest.mark.parametrize("features", ["normalized", "raw"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_of_tasks_is_a_loop_over_them(name: str, features: str) -> None:
    tasks = tasks_of(name)
    rule = rule_with(features=features)
    observation = observe(tasks, tasks.params)._replace(symmetry=tasks_of(name, 1).symmetry)
    state = rule(observation, rule.init(tasks.params, tasks.symmetry))[1]
    later = observation._replace(step=torch.tensor([1, 2, 40]))
    laws.rule_is_loop(rule, later, state)


def test_the_loss_may_be_in_any_unit() -> None:
    tasks = tasks_of("factors")
    seen = observe(tasks, tasks.params)
    scaled = seen._replace(gradients={name: 1e3 * g for name, g in seen.gradients.items()})
    here, there = (updates(rule_with(), o) for o in (seen, scaled))
    laws.params_close(there, here, 1e-10)
    raw = rule_with(features="raw")
    laws.must_fail(laws.params_close, updates(raw, scaled), updates(raw, seen), 1e-3)


def test_a_coordinate_is_moved_by_its_own_gradients_alone() -> None:
    tasks = tasks_of("factors")
    seen = observe(tasks, tasks.params)
    alone = seen._replace(params={"A": seen.params["A"]}, gradients={"A": seen.gradients["A"]})
    raw = rule_with(features="raw")
    laws.assert_close(updates(raw, alone)["A"], updates(raw, seen)["A"], 1e-12)
    unlike = rule_with()
    laws.must_fail(laws.assert_close, updates(unlike, alone)["A"], updates(unlike, seen)["A"], 1e-3)


def test_without_a_graph_the_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, tasks = rule_with(), tasks_of("scaling")
    observation = observe(tasks, tasks.params)
    whole = updates(rule, observation)
    monkeypatch.setattr("meta_teleport.learned.coordinatewise.PIECE", 7)
    with torch.no_grad():
        pieces = updates(rule, observation)
    laws.params_close(pieces, whole, 1e-12)
    laws.must_fail(laws.params_close, pieces, updates(rule, observation, 2), 1e-6)


def test_permuting_the_units_permutes_the_update() -> None:
    tasks, order = tasks_of("factors"), torch.tensor([2, 0, 1])

    def permute(params: Params) -> Params:
        return {"A": params["A"][:, order], "B": params["B"][:, :, order]}

    def propose(rule: Rule, params: Params) -> Params:
        return updates(rule, observe(tasks, params))

    laws.permutation_equivariance(partial(propose, rule_with()), tasks.params, permute)
    with initialized(0):
        dense = LSTMUpdate(shapes_of(tasks.params, tasks.symmetry), hidden_size=6).double()
        for p in dense.parameters():
            torch.nn.init.normal_(p, std=0.3)
    laws.must_fail(laws.permutation_equivariance, partial(propose, dense), tasks.params, permute)


def test_meta_gradient_is_that_of_extrapolated_differences() -> None:
    tasks, rule = tasks_of("factors", 2), rule_with()
    phi = {key: p.detach().clone().requires_grad_() for key, p in rule.named_parameters()}

    def objective(at: Params) -> Tensor:
        return unroll(rule, at, tasks, start(rule, tasks), 3, second_order=True)[0].log().sum()

    direction = {key: torch.randn(p.shape, generator=torch.Generator().manual_seed(2)).to(p) for key, p in phi.items()}
    gradients = torch.autograd.grad(objective(phi), list(phi.values()))
    slope = sum((g * d).sum() for g, d in zip(gradients, direction.values(), strict=True))

    @torch.no_grad()
    def along(t: float) -> float:
        return float(objective({key: p + t * direction[key] for key, p in phi.items()}))

    found, error = laws.slope_at_zero(along)
    assert error <= 1e-7 * abs(found)  # what is claimed below is ten times as much
    assert float(slope.detach()) == pytest.approx(found, rel=1e-6)
    first_order = unroll(rule, phi, tasks, start(rule, tasks), 3)[0].log().sum()
    parts = torch.autograd.grad(first_order, list(phi.values()))
    cut = sum((g * d).sum() for g, d in zip(parts, direction.values(), strict=True))
    assert float(cut.detach()) != pytest.approx(found, rel=1e-5)


class Unmoved(Coordinatewise):
    """The same rule, but its memory stays behind when the parameters move."""

    def transport(self, state: CoordinatewiseState, *_: Any) -> CoordinatewiseState:
        return state


@pytest.mark.parametrize("cls", [Coordinatewise, Unmoved])
def test_the_running_means_move_with_the_parameters(cls: type[Coordinatewise]) -> None:
    """With an update that is zero, means of gradients that were taken along a chain of teleports are those of gradients
    taken at its end."""
    tasks = replace(tasks_of("factors"), batch=None)
    with initialized(0):
        rule = Equivariant("coordinatewise", hidden_size=6, horizon=10).double()
        for head in (rule.element_head.weight, rule.element_head.bias):
            torch.nn.init.normal_(head, std=0.3)
    rule.update.__class__ = cls
    with torch.no_grad():
        _, carry = unroll(rule, dict(rule.named_parameters()), tasks, start(rule, tasks), 4)
    now = observe(tasks, carry.params).gradients
    assert all(bool((carry.params[key] != p).any()) for key, p in tasks.params.items())
    for decay, mean in zip(DECAYS, carry.state.update.means, strict=True):
        expected = {name: (1 - decay**4) * g for name, g in now.items()}
        if cls is Coordinatewise:
            laws.params_close(mean, expected, 1e-10)
        else:
            laws.must_fail(laws.params_close, mean, expected, 1e-3)


def test_the_recurrent_state_stays_where_it_is() -> None:
    tasks, rule = tasks_of("factors"), rule_with()
    state = rule(observe(tasks, tasks.params), rule.init(tasks.params, tasks.symmetry))[1]
    elements = tasks.symmetry.exp_pairs((torch.ones(3, 3, 3, dtype=torch.float64),))
    moved = rule.transport(state, tasks.symmetry, elements)
    laws.same_bits(moved.cells, state.cells)
    laws.must_fail(laws.same_bits, moved.means, state.means)


def test_step_lengths_fall_and_go_on_falling() -> None:
    steps = torch.tensor([0.0, 5.0, 9.95, 10.0, 20.0, 1000.0])
    laws.assert_close(linear_decay(steps, 10), torch.tensor([1.0, 0.5, 0.01, 0.01, 0.005, 1e-4]), 1e-6)
    tasks = tasks_of("data-dependent")
    late = observe(tasks, tasks.params, step=100)
    short, long = (updates(rule_with(horizon=horizon), late, 1) for horizon in (10, 1000))
    laws.params_close(short, {name: f * 0.001 / 0.9 for name, f in long.items()}, 1e-10)


def test_a_step_is_a_tenth_of_the_direction_times_a_length_within_factors_of_e_to_the_eighth() -> None:
    tasks = tasks_of("numbers")
    seen = observe(tasks, tasks.params)
    for number, log_length in ((0.0, 0.0), (1e-3, 1e-3), (1e3, 8.0), (-1e3, -8.0)):
        rule = rule_with()
        rule.head.weight.data.zero_()
        rule.head.bias.data.copy_(torch.tensor([-2.0, number]))
        update = updates(rule, seen, 1)["x"]
        laws.assert_close(update, torch.full_like(update, -0.2 * e**log_length), 1e-10)


def test_gradients_are_remembered_for_10_and_100_steps() -> None:
    tasks = tasks_of("numbers")
    seen = observe(tasks, tasks.params)
    rule, nothing = rule_with(), {"x": torch.zeros_like(seen.gradients["x"])}
    state = rule(seen, rule.init(seen.params, seen.symmetry))[1]
    for step in range(1, 5):
        state = rule(seen._replace(gradients=nothing, step=torch.full((3,), step)), state)[1]
    for memory, mean in zip((10, 100), state.means, strict=True):
        laws.assert_close(mean["x"], seen.gradients["x"] / memory * (1 - 1 / memory) ** 4, 1e-12)


def test_the_unit_of_a_step_is_that_of_an_entry() -> None:
    shapes = {(3, 8, 5): 5, (3, 8): 1, (3,): 1, (3, 4, 2, 3, 3): 18}
    for shape, expected in shapes.items():
        assert fan_in(torch.zeros(shape)) == expected
    wide = torch.zeros(1, 4, 16, dtype=torch.float64)
    tall = wide.mT
    seen = [
        Observation({"w": w}, {"w": torch.ones_like(w)}, torch.ones(1).double(), torch.zeros(1).long())
        for w in (wide, tall)
    ]
    by_wide, by_tall = (updates(rule_with(), o)["w"] for o in seen)
    laws.assert_close(by_wide.mT * 2, by_tall, 1e-12)


def test_what_cannot_be_built() -> None:
    with pytest.raises(UserError, match="hidden_size 0 and horizon 30 must both be at least 1"):
        Coordinatewise(hidden_size=0)
    with pytest.raises(UserError, match="unknown features 'cooked': choose one of normalized, raw"):
        Coordinatewise(features="cooked")  # type: ignore[arg-type]
