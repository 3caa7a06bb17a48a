"""L-BFGS batched over tasks."""

import laws
import pytest
import torch

from meta_teleport.meta.unroll import start, unroll
from meta_teleport.rules.classical import GradientDescent
from meta_teleport.rules.lbfgs import LBFGS, LBFGSState
from meta_teleport.rules.rule import Observation
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.regression import Regression


def losses_of(tasks: Tasks, steps: int) -> torch.Tensor:
    rule = LBFGS()
    with torch.no_grad():
        return unroll(rule, {}, tasks, start(rule, tasks), steps)[0]


def test_reaches_the_minimum_of_convex_quadratics(generator: torch.Generator) -> None:
    for name in ("ellipse", "booth"):
        losses = losses_of(Functions(name).sample(32, generator, dtype=torch.float64), 40)
        assert float(losses.cummin(0).values[-1].max()) < 1e-16, name


def test_stays_where_it_has_converged(generator: torch.Generator) -> None:
    tasks, rule = Functions("ellipse").sample(32, generator, dtype=torch.float64), LBFGS()
    with torch.no_grad():
        losses, carry = unroll(rule, {}, tasks, start(rule, tasks), 120)
    assert bool(carry.alive.all()) and float(losses[-1].max()) < 1e-300


def test_reaches_the_minimum_of_rosenbrock(generator: torch.Generator) -> None:
    tasks = Functions("rosenbrock").sample(64, generator, dtype=torch.float64)
    assert float(losses_of(tasks, 150).cummin(0).values[-1].max()) < 1e-12
    rule = GradientDescent(1e-4)
    with torch.no_grad():
        plain, _ = unroll(rule, {}, tasks, start(rule, tasks), 150)
    assert float(plain[-1].median()) > 1e-3


def test_beats_the_measured_curve_on_the_papers_problems(generator: torch.Generator) -> None:
    losses = losses_of(Regression().sample(64, generator, dtype=torch.float64), 100).cummin(0).values
    assert float(losses[-1].mean()) < 8
    assert bool((losses[-1] < losses[10]).all())


def test_a_batch_of_tasks_is_a_loop_over_them(generator: torch.Generator) -> None:
    tasks = Functions("rosenbrock").sample(5, generator, dtype=torch.float64)
    together = losses_of(tasks, 15)
    for i in range(5):
        alone = losses_of(tasks.select(torch.tensor([i])), 15)
        laws.assert_close(together[:, i], alone[:, 0], 1e-9, scale=1.0)


def followed(shown: list[tuple[float, float]]) -> tuple[list[float], LBFGSState]:
    """Where a search on a line goes from 0 that is shown these losses and slopes in turn; the first slope is -1, so
    that the first length is 1."""
    rule, x = LBFGS(), torch.zeros(1, 1, dtype=torch.float64)
    state, places = rule.init({"x": x}, Symmetry(())), []
    for loss, slope in shown:
        seen = Observation({"x": x}, {"x": torch.full_like(x, slope)}, x.new_full((1,), loss), torch.zeros(1))
        proposal, state = rule(seen, state)
        x = x + proposal.update["x"]
        places.append(float(x))
    return places, state


def test_where_a_line_falls_for_ever_lengths_are_doubled_twenty_times() -> None:
    places, _ = followed([(-float(x), -1.0) for x in (0, *(2**i for i in range(21)))])
    assert places[:-1] == [2.0**i for i in range(21)]
    assert places[-1] == 2**20 + 1


@pytest.mark.parametrize(
    ("loss", "slope", "accepted"),
    [
        (-1.1e-4, 0.0, True),  # at length 1 along slope -1 the loss must fall by 1e-4
        (-0.9e-4, 0.0, False),
        (-0.5, -0.89, True),  # and the slope be at most 0.9 of that at 0, in size
        (-0.5, -0.91, False),
        (-0.5, 0.89, True),
        (-0.5, 0.91, False),
    ],
)
def test_lengths_are_accepted_by_the_strong_wolfe_conditions(loss: float, slope: float, accepted: bool) -> None:
    _, state = followed([(0.0, -1.0), (loss, slope)])
    assert float(state.base) == float(accepted)


@pytest.mark.parametrize(("loss", "next_length"), [(1e9, 0.1), (0.25, 0.4), (-0.99e-4, 0.5 / (1 - 0.99e-4))])
def test_the_next_length_is_that_of_the_parabola_but_a_tenth_of_the_bracket_from_its_ends(
    loss: float, next_length: float
) -> None:
    places, _ = followed([(0.0, -1.0), (loss, 0.0)])
    assert places == [1.0, pytest.approx(next_length)]
