"""One meta-training per estimator, at the same number of task-steps, and the gradients that the estimators give."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.estimators.schedule import Schedule
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.loop import Progress, train
from meta_teleport.meta.trainer import Trainer
from meta_teleport.meta.unroll import FAILURE_FACTOR, start, unroll
from meta_teleport.rules.rule import Rule
from meta_teleport.tasks.family import Split, TaskFamily, Tasks
from meta_teleport.tasks.linear import DeepLinear

TRUNCATED, FULL, ES, PES = "truncated back-propagation", "full back-propagation", "ES", "PES"
ESTIMATORS = (TRUNCATED, FULL, ES, PES)


@dataclass(frozen=True)
class Plan:
    """Sizes of the experiment.

    ``budget`` is in task-steps: one task trained for one step, so that both halves of an antithetic pair count.
    ``checkpoints`` is how often the held-out error is measured during a meta-training.
    """

    horizon: int = 50
    window: int = 5
    tasks: int = 32
    budget: int = 32_000
    pairs: int = 2
    sigma: float = 0.1
    start: float = -5.0
    rates: tuple[float, ...] = (0.03, 0.1, 0.2, 0.3)
    seeds: int = 5
    tuning_tasks: int = 64
    held_out_tasks: int = 128
    checkpoints: int = 4
    lives: int = 36
    probe: tuple[float, float] = (-3.0, -5.0)

    def family(self) -> TaskFamily:
        """Noisy two-layer linear regression whose curvatures span two decades, in batches of 4, one epoch a life."""
        points = 4 * self.horizon
        return DeepLinear(width=8, depth=2, condition=10, anisotropy=100, batch=4, points=points, noise=1.0)

    def rule(self, ends: tuple[float, float] | None = None) -> Schedule:
        """The rule before meta-training, or with these meta-parameters."""
        rule = Schedule(self.horizon, self.start).double()
        if ends is not None:
            rule.ends.data = torch.tensor(ends, dtype=torch.float64)
        return rule

    def training(self, estimator: str, rate: float = 0.0) -> TrainingConfig:
        """The meta-training of one estimator at one learning rate; all have the same meta-loss, a mean over a life."""
        window = self.horizon if estimator == FULL else self.window
        twice = 2 if estimator in (ES, PES) else 1
        return TrainingConfig(
            meta_steps=max(1, self.budget // (self.tasks * window * twice)),
            tasks=self.tasks,
            window=window,
            horizon=self.horizon,
            lr_update=rate,
            estimator={ES: "es", PES: "pes"}.get(estimator, "bptt"),  # type: ignore[arg-type]
            sigma=self.sigma,
            pairs=self.pairs,
            second_order=True,
            errors=True,
        )


def held_out_errors(rule: Rule, tasks: Tasks, horizon: int) -> Tensor:
    """Errors ``(horizon + 1, tasks)`` over those at the start; of a task that failed, 1e6 from the first step on."""
    with torch.no_grad():
        errors, carry = unroll(rule, dict(rule.named_parameters()), tasks, start(rule, tasks), horizon, errors=True)
        first = tasks.error(tasks.params, torch.zeros_like(carry.step))
    relative = torch.cat([torch.ones_like(first).unsqueeze(0), errors / first])
    relative[1:, ~carry.alive] = FAILURE_FACTOR
    return relative


def drawn(plan: Plan, split: Split, count: int) -> Tasks:
    """The tasks of one split that everything is measured on."""
    return plan.family().sample(count, torch.Generator().manual_seed(10**6), split, torch.float64)


def meta_trained(plan: Plan, estimator: str, rate: float, seed: int) -> list[list[float]]:
    """The two meta-parameters before, during and after a meta-training, ``checkpoints + 1`` pairs of numbers."""
    rule, training = plan.rule(), plan.training(estimator, rate)
    due = {round(i * training.meta_steps / plan.checkpoints) for i in range(1, plan.checkpoints + 1)}
    path = [rule.ends.tolist()]

    def keep(progress: Progress) -> None:
        if progress.meta_step in due:
            path.append(rule.ends.tolist())

    train(rule, plan.family(), training, seed=seed, dtype=torch.float64, report=keep)
    return path


def gradients(plan: Plan, estimator: str, seed: int) -> Tensor:
    """Estimates ``(lives, 2)`` of the gradient of the meta-loss of a life by the meta-parameters at ``probe``.

    The mean over the windows of a life of fresh tasks, with the meta-parameters held where they are.
    """
    training = replace(plan.training(estimator), staggered=False)
    trainer = Trainer(plan.rule(plan.probe), plan.family(), training, seed, dtype=torch.float64)
    windows = plan.horizon // training.window
    estimates = [_estimate(trainer) for _ in range(plan.lives * windows)]
    return torch.stack(estimates).view(plan.lives, windows, 2).mean(1)


def _estimate(trainer: Trainer) -> Tensor:
    """The gradient of one window, after which the tasks go on and the meta-parameters do not."""
    trainer.pool.renew()
    pool, t = trainer.pool, trainer.training
    estimate = trainer.estimate(
        trainer.rule, trainer.phi, pool.tasks, pool.carry, t.window, trainer.objective, errors=t.errors
    )
    pool.follow(estimate)
    return estimate.gradient["ends"]
