"""Learned step lengths: what they are before training, and what the learned numbers mean."""

import math

import laws
import pytest
import torch
from torch import Tensor

from meta_teleport.learned.layerwise import Direction, Layerwise
from meta_teleport.learned.lstm import LSTMUpdateTele
from meta_teleport.rules.rule import Observation, shapes_of
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.regression import Regression


@pytest.mark.parametrize("start", [0.0, -2.0, -30.0])
def test_parts_of_the_loss_to_remove_are_equal_but_for_the_start_where_a_site_produces(
    start: float, generator: torch.Generator
) -> None:
    tasks = Regression(width=4, depth=3, data="gaussian").sample(5, generator, dtype=torch.float64)
    rule = Layerwise("polyak", start=start).double()
    loss = torch.rand(5, generator=generator, dtype=torch.float64)
    gradients = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in tasks.params.items()}
    seen = Observation(tasks.params, gradients, loss, torch.zeros(5, dtype=torch.long), symmetry=tasks.symmetry)
    update = rule(seen, rule.init(seen.params, seen.symmetry))[0].update

    def parts(start: float) -> dict[str, float]:
        lower, rest = math.exp(start), 1.0
        found = {"layers.0.weight": lower, "layers.1.weight": lower, "layers.2.weight": rest}
        return {name: part / (rest + sum(found.values())) for name, part in found.items()}

    for name, g in gradients.items():
        removed = -(g * update[name]).flatten(1).sum(1)
        laws.assert_close(removed, 2 * parts(start)[name] * loss, 1e-12)
        if start > -30:
            laws.must_fail(laws.assert_close, removed, 2 * parts(start + 0.1)[name] * loss, 1e-3)


def test_a_gradient_that_is_zero_gives_no_update(generator: torch.Generator) -> None:
    tasks = Regression(width=4, data="gaussian").sample(2, generator)
    gradients = {name: torch.zeros_like(p) for name, p in tasks.params.items()}
    for rule in (Layerwise("polyak"), LSTMUpdateTele(shapes_of(tasks.params, tasks.symmetry))):
        seen = Observation(tasks.params, gradients, torch.full((2,), 75.0), torch.zeros(2, dtype=torch.long))
        seen = seen._replace(symmetry=tasks.symmetry)
        update = rule(seen, rule.init(seen.params, seen.symmetry))[0].update
        assert all(bool(torch.isfinite(f).all()) for f in update.values())


def entry(direction: Direction, numbers: list[float], gradients: list[Tensor], **options: float) -> Tensor:
    """The last update of a rule that always chooses these numbers, at a vector with these gradients in turn; from a
    loss of 1."""
    rule = Layerwise(direction, horizon=10**9, **options).double()
    rule.head.bias.data.copy_(torch.tensor(numbers))
    params = {"b": torch.ones(1, 2, dtype=torch.float64)}
    state, update = rule.init(params, Symmetry(())), torch.empty(0)
    with torch.no_grad():
        for step, g in enumerate(gradients):
            seen = Observation(params, {"b": g.unsqueeze(0)}, torch.ones(1).double(), torch.tensor([step]))
            proposal, state = rule(seen, state)
            update = proposal.update["b"][0]
    return update


def test_learned_lengths_are_themselves_near_their_start_and_within_factors_of_e_to_the_eighth() -> None:
    g = torch.tensor([2.0, -2.0], dtype=torch.float64)
    middle = entry("adam", [0.0] * 4, [g])
    for number, log_length in ((1e-3, 1e-3), (-1e-3, -1e-3), (1e3, 8.0), (-1e3, -8.0)):
        found = entry("adam", [number, 0.0, 0.0, 0.0], [g])
        laws.assert_close(found, math.exp(log_length) * middle, 1e-10)  # tanh(x) - x is x^3 / 3, x = 1e-3 / 8


def test_a_number_of_one_quarter_multiplies_the_odds_of_a_parameter_by_e() -> None:
    g = torch.tensor([3.0, 4.0], dtype=torch.float64)
    for quarters in (0, 1, -2):
        removed = -(g * entry("polyak", [quarters / 4, 0.0, 0.0, 0.0], [g])).sum() / 2
        assert float(removed / (1 - removed)) == pytest.approx(math.exp(quarters))


@pytest.mark.parametrize(("chosen", "memory"), [(0, 2), (1, 10), (2, 100)])
def test_gradients_are_remembered_for_2_and_10_and_100_steps_and_their_squares_for_20(chosen: int, memory: int) -> None:
    """After t steps without one, of a first gradient ``d^t (1 - d) / (1 - d^(t + 1))`` is left, d = 1 - 1 / memory."""
    weights = [1e3 if j == chosen else 0.0 for j in range(3)]
    g, t = torch.tensor([3.0, 3.0], dtype=torch.float64), 4

    def left(memory: int) -> float:
        d = 1 - 1 / memory
        return d**t * (1 - d) / (1 - d ** (t + 1))

    found = entry("adam", [0.0, *weights], [g, *[torch.zeros_like(g)] * t], epsilon=0.0)
    laws.assert_close(found, torch.full_like(g, -left(memory) / left(20) ** 0.5), 1e-8)  # steps fall by t / 10^9


def test_entries_below_a_thousandth_of_the_mean_size_move_less() -> None:
    small = 1e-3 / (2 - 1e-6) ** 0.5  # a thousandth of the root mean square of itself and 1
    found = entry("adam", [0.0] * 4, [torch.tensor([1.0, small], dtype=torch.float64)])
    laws.assert_close(found, torch.tensor([-1.0, -(0.5**0.5)], dtype=torch.float64), 1e-6)
