from dataclasses import replace
from time import sleep, thread_time

import pytest
import torch
from evaluation_cases import Quadratic, Turning, generator

from meta_teleport.evaluation.measurement import Drift, measure
from meta_teleport.evaluation.methods import Interventions, Method
from meta_teleport.rules.classical import GradientDescent
from meta_teleport.rules.lbfgs import LBFGS
from meta_teleport.rules.rule import Proposal
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.regression import Regression


def work(seconds):
    end = thread_time() + seconds
    while thread_time() < end:
        pass


def test_gradient_descent_on_a_quadratic_equals_its_closed_form():
    tasks = Quadratic(a=2.0).sample(5, generator(), dtype=torch.float64)
    measured = measure(Method("gd", "baseline", GradientDescent(0.1)), tasks, 23)
    factors = 0.8 ** (2 * torch.arange(24, dtype=torch.float64))
    expected = factors.unsqueeze(1) * tasks.params["x"].square().sum(1)
    torch.testing.assert_close(measured.losses, expected, rtol=1e-12, atol=0)
    assert measured.seconds.shape == (24,) and measured.seconds[0] == 0 and (measured.seconds.diff() > 0).all()
    assert measured.failed == 0 and measured.teleports == 0 and measured.drift_max == 0


@pytest.mark.parametrize(("lr", "failing"), [(4.0, 9), (40.0, 4), (1e5, 2)])
def test_a_failed_task_counts_a_million_times_its_initial_loss_from_the_step_on_at_which_it_failed(lr, failing):
    tasks = Quadratic(a=2.0).sample(3, generator(), dtype=torch.float64)
    rates = torch.tensor([0.1, lr, 0.1], dtype=torch.float64)
    measured = measure(Method("gd", "baseline", GradientDescent(rates)), tasks, 15)
    growth = (1 - 2 * lr) ** 2
    failing = next(t for t in range(1, 16) if growth**t > 1e6)
    initial = measured.losses[0, 1]
    torch.testing.assert_close(measured.losses[failing - 1, 1], initial * growth ** (failing - 1))
    assert (measured.losses[failing:, 1] == 1e6 * initial).all()
    assert measured.failed == 1 and measured.alive.tolist() == [True, False, True]
    assert (measured.losses[-1, [0, 2]] < measured.losses[0, [0, 2]]).all()


@pytest.mark.parametrize("jump", [None, 3, 12])
def test_a_task_that_fails_late_or_after_a_jump_is_marked_from_its_own_step_on(jump):
    tasks = Quadratic(a=2.0).sample(3, generator(), dtype=torch.float64)
    rates = torch.tensor([0.1, 1.3, 2.0], dtype=torch.float64)
    interventions = None if jump is None else Interventions((jump,), lambda tasks, params, step: params)
    measured = measure(Method("gd", "baseline", GradientDescent(rates), interventions=interventions), tasks, 30)
    for task, rate in ((1, 1.3), (2, 2.0)):
        growth = (1 - 2 * rate) ** 2
        failing = next(t for t in range(31) if growth**t > 1e6)
        initial = measured.losses[0, task]
        assert failing == {1: 15, 2: 7}[task]
        torch.testing.assert_close(measured.losses[failing - 1, task], initial * growth ** (failing - 1))
        assert (measured.losses[failing:, task] == 1e6 * initial).all()
    assert measured.alive.tolist() == [True, False, False]
    assert (measured.losses[1:, 0] < measured.losses[:-1, 0]).all()


class Leaping(GradientDescent):
    """Stands still for some steps, and leaps too far after them."""

    def forward(self, observation, state):
        leap = torch.where(observation.step == 4, 1e9, 0.0)
        return Proposal({name: leap.to(p).unsqueeze(1) * p for name, p in observation.params.items()}), state


def test_a_task_that_fails_after_steps_without_a_change_fails_at_its_own_step():
    tasks = Quadratic(a=2.0).sample(2, generator(), dtype=torch.float64)
    measured = measure(Method("leaping", "baseline", Leaping(0.1)), tasks, 8)
    initial = measured.losses[0]
    assert torch.equal(measured.losses[:5], initial.expand(5, 2))
    assert torch.equal(measured.losses[5:], 1e6 * initial.expand(4, 2))


def test_a_loss_may_be_negative():
    tasks = replace(Quadratic(a=2.0).sample(2, generator(), dtype=torch.float64), constant=-50.0)
    rates = torch.tensor([0.1, 1e4], dtype=torch.float64)
    measured = measure(Method("gd", "baseline", GradientDescent(rates)), tasks, 15)
    assert measured.losses[0].max() < 0 and measured.alive.tolist() == [True, False]
    assert (measured.losses[-1] == 1e6 * measured.losses[0].abs()).tolist() == [False, True]


def test_losses_are_finite_even_where_the_initial_loss_is_not():
    tasks = Quadratic().sample(2, generator(), dtype=torch.float64)
    tasks.params["x"][0] = torch.inf
    measured = measure(Method("gd", "baseline", GradientDescent(0.1)), tasks, 3)
    assert torch.isfinite(measured.losses).all()
    assert measured.losses[0, 0] == 1e200 and (measured.losses[1:, 0] == 1e6 * measured.losses[0, 0]).all()
    assert measured.alive.tolist() == [False, True]


def test_a_monotone_method_is_reported_by_its_lowest_loss_so_far():
    tasks = Functions("rosenbrock").sample(8, generator())
    raw = measure(Method("plain", "baseline", GradientDescent(1e-2)), tasks, 20)
    assert (raw.losses.diff(dim=0) > 0).any()
    best = measure(Method("lbfgs", "baseline", LBFGS()), tasks, 20)
    assert (best.losses.diff(dim=0) <= 0).all()


def test_the_clock_stands_still_while_drift_is_measured(monkeypatch):
    tasks = Functions("ellipse").sample(4, generator())
    method = Method("turning", "learned", Turning())
    honest = Drift.measure

    def slow(self, *arguments):
        work(0.05)
        honest(self, *arguments)

    monkeypatch.setattr(Drift, "measure", slow)
    measured = measure(method, tasks, 6)
    assert measured.teleports == 6
    assert measured.seconds[-1] < 0.15


def test_time_that_other_programs_take_does_not_count():
    tasks = Quadratic().sample(4, generator())

    def wait(tasks, params, step):
        sleep(0.3)
        return params

    measured = measure(Method("waiting", "control", GradientDescent(0.1), {}, Interventions((3,), wait)), tasks, 12)
    assert measured.seconds[-1] < 0.3


def test_a_jump_is_paid_for_at_its_own_step():
    tasks = Quadratic().sample(4, generator())

    def move(tasks, params, step):
        work(0.05)
        return params

    measured = measure(Method("jumping", "control", GradientDescent(0.1), {}, Interventions((3,), move)), tasks, 12)
    steps = measured.seconds.diff()
    assert steps.argmax() == 3 and steps[3] > 0.05
    assert measured.teleports == 1 and measured.drift_max == 0


def test_drift_is_the_largest_relative_change_of_loss_and_outputs():
    tasks = Quadratic().sample(4, generator(), dtype=torch.float64)
    initial = tasks.params["x"].square().sum(1)

    def stretch(tasks, params, step):
        return {"x": 1.1 * params["x"]}

    method = Method("stretch", "control", GradientDescent(0.0), {}, Interventions((2,), stretch))
    undone = measure(method, tasks, 4)
    assert undone.rejected == 4 and undone.drift_max == 0 and torch.equal(undone.losses[4], undone.losses[0])
    measured = measure(method, replace(tasks, keeps_loss=False), 4)
    assert measured.rejected == 0
    assert measured.drift_max == pytest.approx(float((0.21 * initial / initial.clamp(min=1)).max()))
    assert measured.output_drift_max == pytest.approx(0.1)


def test_exact_elements_drift_by_rounding_and_first_order_ones_by_more():
    for group, low, high in (("gl", 0.0, 1e-6), ("first_order", 1e-6, 1.0)):
        family = Regression(4, data="gaussian", group=group)
        tasks = family.sample(4, generator(), dtype=torch.float64)

        def move(tasks, params, step):
            t = [torch.full((tasks.count, 4, 4), 0.1, dtype=torch.float64)]
            return tasks.symmetry.act(params, tasks.symmetry.exp(t), tasks.inputs(step))

        measured = measure(Method("moved", "control", GradientDescent(0.0), {}, Interventions((0,), move)), tasks, 1)
        assert low <= measured.output_drift_max < high


def test_meta_parameters_are_read_in_the_dtype_of_the_tasks_and_left_alone():
    tasks = Functions("ellipse").sample(2, generator(), dtype=torch.float64)
    rule = Turning()
    rule.weight = torch.nn.Parameter(torch.ones(2))
    assert measure(Method("turning", "learned", rule), tasks, 2).losses.dtype == torch.float64
    assert rule.weight.dtype == torch.float32
