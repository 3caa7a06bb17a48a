"""Evolution strategies against closed forms: smoothed gradients of one window and of a whole life cut into windows.

The problem is influence balancing (Vicol, Metz, Sohl-Dickstein 2021) in three dimensions: ``x' = A x + B theta`` and
``L = (x_0 - 1)^2 / 2``. What theta does to x_0 at once is the opposite of what it does in the long run, so a truncated
gradient has the wrong sign. As L is quadratic, its smoothed gradient is the gradient along the unperturbed path.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import laws
import pytest
import torch
from torch import Tensor, nn

from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.estimators import loss_sum, mean_increase, mean_log_loss, truncated_bptt
from meta_teleport.meta.evolution import es, pes, start_pairs
from meta_teleport.meta.trainer import Trainer
from meta_teleport.meta.unroll import start
from meta_teleport.params import Params
from meta_teleport.rules.classical import NoState
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Split, TaskFamily, Tasks

A = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.5]], dtype=torch.float64)
B = torch.tensor([[1.0, 0.5], [-1.0, -1.0], [-1.0, -2.0]], dtype=torch.float64)
THETA = torch.tensor([0.3, -0.4], dtype=torch.float64)
TASKS, LIFE, SIGMA, REPEATS = 8, 8, 0.5, 30


class BalancingTasks(Tasks):
    """States x, ``(tasks, 3)``."""

    @property
    def symmetry(self) -> Symmetry:
        return Symmetry(())

    def inputs(self, step: Tensor) -> LayerInput:
        return LayerInput(self.params["x"].unsqueeze(-1))

    def outputs(self, params: Params, step: Tensor) -> Tensor:
        return params["x"]

    def loss(self, params: Params, step: Tensor) -> Tensor:
        return 0.5 * (params["x"][:, 0] - 1).square()


class Balancing(TaskFamily):
    """Random states to begin at."""

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> BalancingTasks:
        return BalancingTasks({"x": 3 + torch.randn(count, 3, generator=generator, dtype=dtype).to(device)}, {})


class Push(Rule):
    """``x' = A x + B theta``."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(THETA.clone())

    def init(self, params: Params, symmetry: Symmetry) -> NoState:
        return NoState()

    def forward(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
        x = observation.params["x"]
        return Proposal({"x": x @ A.to(x).T + self.theta @ B.to(x).T - x}), state


def tasks_of(seed: int = 0) -> Tasks:
    return Balancing().sample(TASKS, torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient_of_life(tasks: Tasks, window: int = LIFE) -> Tensor:
    """The sum over the windows of a life of the gradient by theta, cut at the start of every window."""
    x, slope, total = tasks.params["x"], B, torch.zeros(2, dtype=torch.float64)
    for t in range(LIFE):
        slope = B if t % window == 0 else A @ slope + B
        x = x @ A.T + THETA @ B.T
        total += (x[:, 0] - 1).mean() * slope[0]
    return total


def over_a_life(estimate: Callable[..., Any], carry: Any, tasks: Tasks, window: int, **options: Any) -> Tensor:
    """The sum of an estimator's gradients over the windows of a life."""
    rule, total = Push(), torch.zeros(2, dtype=torch.float64)
    for _ in range(LIFE // window):
        found = estimate(rule, {"theta": THETA}, tasks, carry, window, loss_sum, **options)
        total, carry = total + found.gradient["theta"], found.carry
    return total


def repeated(name: str, tasks: Tasks, window: int) -> Tensor:
    """Independent estimates of the gradient of a life, ``(repeats, 2)``."""
    estimate, begin = {"es": (es, start), "pes": (pes, start_pairs)}[name]
    options = {"sigma": SIGMA, "pairs": 4, "generator": torch.Generator().manual_seed(1)}
    carry = begin(Push().double(), tasks)
    return torch.stack([over_a_life(estimate, carry, tasks, window, **options) for _ in range(REPEATS)])


def agree(estimates: Tensor, expected: Tensor) -> None:
    """The mean of the estimates is as expected, within 4 standard errors."""
    error = estimates.std(dim=0) / len(estimates) ** 0.5
    assert bool(((estimates.mean(0) - expected).abs() <= 4 * error).all()), (estimates.mean(0), error, expected)


def test_the_truncated_gradient_has_the_wrong_sign() -> None:
    tasks, rule = tasks_of(), Push()
    whole, cut = gradient_of_life(tasks), gradient_of_life(tasks, 1)
    assert bool((whole * cut < 0).all())
    for window, expected in ((LIFE, whole), (1, cut)):
        found = over_a_life(truncated_bptt, start(rule, tasks), tasks, window)
        laws.assert_close(found[None], expected[None], 1e-12)


@pytest.mark.parametrize("window", [1, 2])
def test_pes_sees_the_whole_life_and_es_one_window(window: int) -> None:
    tasks = tasks_of()
    whole, cut = gradient_of_life(tasks), gradient_of_life(tasks, window)
    truncated, persistent = repeated("es", tasks, window), repeated("pes", tasks, window)
    agree(persistent, whole)
    agree(truncated, cut)
    laws.must_fail(agree, truncated, whole)
    laws.must_fail(agree, persistent, cut)


@pytest.mark.parametrize("name", ["es", "pes"])
def test_the_gradient_is_that_of_the_smoothed_meta_loss(name: str) -> None:
    """``F = (x_0 - 1)^4 / 4`` after one step: ``E dF/dtheta = (m^3 + 3 m s^2) B_0`` with ``x_0 - 1 ~ N(m, s^2)``."""
    tasks, rule = tasks_of(), Push()
    sigma = 2.0
    m, s = (tasks.params["x"] @ A.T + THETA @ B.T)[:, 0] - 1, sigma * B[0].norm()
    estimate, begin = {"es": (es, start), "pes": (pes, start_pairs)}[name]
    options = {"sigma": sigma, "pairs": TASKS, "generator": torch.Generator().manual_seed(1)}
    found = torch.stack([
        estimate(rule, {"theta": THETA}, tasks, begin(rule, tasks), 1, lambda losses, _: losses[0].square(), **options)
        .gradient["theta"] for _ in range(100)
    ])  # fmt: skip
    agree(found, (m**3 + 3 * m * s**2).mean() * B[0])
    laws.must_fail(agree, found, (m**3).mean() * B[0])


@pytest.mark.parametrize("name", ["es", "pes"])
def test_meta_losses_are_those_of_the_two_halves(name: str) -> None:
    tasks, rule = tasks_of(), Push()
    estimate, begin = {"es": (es, start), "pes": (pes, start_pairs)}[name]
    generator = torch.Generator().manual_seed(1)
    found = estimate(rule, {"theta": THETA}, tasks, begin(rule, tasks), 3, mean_log_loss, sigma=SIGMA, pairs=1,
                     generator=generator, penalty=mean_increase)  # fmt: skip
    eps = SIGMA * torch.randn(1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[0]
    ends = [
        truncated_bptt(rule, {"theta": theta}, tasks, start(rule, tasks), 3, mean_log_loss, penalty=mean_increase)
        for theta in (THETA + eps, THETA - eps)
    ]
    laws.assert_close(found.meta_loss[None], (0.5 * (ends[0].meta_loss + ends[1].meta_loss))[None], 1e-12)
    laws.assert_close(found.losses.T, (0.5 * (ends[0].losses + ends[1].losses)).T, 1e-12)
    expected = eps * (ends[0].meta_loss - ends[1].meta_loss) / (2 * SIGMA**2)
    laws.assert_close(found.gradient["theta"][None], expected[None], 1e-12)
    side = found.carry.plus if name == "pes" else found.carry
    laws.same_bits(side.params["x"], ends[0].carry.params["x"])


@pytest.mark.parametrize("name", ["es", "pes"])
def test_a_failing_task_is_left_out_and_counted(name: str) -> None:
    tasks, rule = tasks_of(), Push()
    estimate, begin = {"es": (es, start), "pes": (pes, start_pairs)}[name]
    good = torch.tensor([0, 2, 3, 4, 5, 6, 7])

    def window(chosen: Tasks, spoil: bool) -> Any:
        carry = begin(rule, chosen)
        side = carry.minus if name == "pes" else carry
        if spoil:
            side = side._replace(initial=side.initial.index_fill(0, torch.tensor([1]), 1e-12))
        carry = carry._replace(minus=side) if name == "pes" else side
        options = {"sigma": SIGMA, "pairs": 1, "generator": torch.Generator().manual_seed(1)}
        return estimate(rule, {"theta": THETA}, chosen, carry, 3, loss_sum, **options)

    spoiled, alone, healthy = window(tasks, True), window(tasks.select(good), False), window(tasks, False)
    assert (spoiled.failed, alone.failed, healthy.failed) == (1, 0, 0)
    assert spoiled.carry.alive.tolist() == [True, False, *[True] * 6]
    for key in ("meta_loss", "gradient"):
        found, expected, other = (getattr(e, key) for e in (spoiled, alone, healthy))
        rows = [v["theta"][None] if key == "gradient" else v[None] for v in (found, expected, other)]
        laws.assert_close(rows[0], rows[1], 1e-12)
        laws.must_fail(laws.assert_close, rows[2], rows[1], 1e-6)


def test_a_fresh_task_begins_without_perturbation() -> None:
    training = TrainingConfig(meta_steps=9, tasks=6, window=2, horizon=6, estimator="pes", pairs=2, sigma=SIGMA)
    trainer = Trainer(Push(), Balancing(), training, seed=0, dtype=torch.float64)
    (pool,) = trainer.pools
    for _ in range(6):
        trainer.step()
        pool.renew()
        began = pool.carry.step == 0
        sums = pool.carry.perturbation["theta"].abs().sum(1)
        assert bool(began.any()) and bool((sums[began] == 0).all()) and bool((sums[~began] > 0).all())
        x = [side.params["x"] for side in (pool.carry.plus, pool.carry.minus)]
        assert torch.equal((x[0] == x[1]).all(1), began)


def test_pes_learns_what_truncated_estimators_unlearn() -> None:
    """In the long run ``x_0 = -2 theta_0 - 5 theta_1``, whose distance from 1 only pes reduces."""
    training = TrainingConfig(
        meta_steps=100, tasks=16, window=1, horizon=LIFE, pairs=4, sigma=0.1, lr_update=0.01, objective="sum", clip=0.0
    )
    ends = {}
    for name in ("bptt", "es", "pes"):
        trainer = Trainer(Push(), Balancing(), replace(training, estimator=name), seed=0, dtype=torch.float64)
        for _ in range(training.meta_steps):
            trainer.step()
        fixed = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - A, B @ trainer.phi["theta"].detach())
        ends[name] = float((fixed[0] - 1).abs())
    assert ends["pes"] < 0.3 * min(ends["es"], ends["bptt"]), ends
