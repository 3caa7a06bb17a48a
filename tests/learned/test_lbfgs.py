"""L-BFGS batched over tasks."""

import laws
import torch

from meta_teleport.learned.classical import GradientDescent
from meta_teleport.learned.lbfgs import LBFGS
from meta_teleport.meta.unroll import start, unroll
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
