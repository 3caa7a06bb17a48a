"""The outer loop: sample tasks, estimate the meta-gradient of a window, step phi, record, save.

    for every meta-step, on the next member of the family in turn:
        replace the tasks that are through their horizon, or have failed, by fresh ones
        meta-loss, gradient, carry = estimate(one window of all tasks)
        phi <- Adam(gradient)

A run stops between two windows and resumes bit for bit: phi, Adam's moments, tasks, carry and generator are all in
``training.safetensors``. Where that has gone bad, it resumes from the state before.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.learned.serialization import save
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.trainer import Trainer
from meta_teleport.rules.rule import Rule
from meta_teleport.runs.run import Run
from meta_teleport.runs.states import state_paths
from meta_teleport.specs import spec_of
from meta_teleport.tasks.family import TaskFamily


class Progress(NamedTuple):
    """Where a run stands; rate in task-steps per second, failed counted since the run began."""

    meta_step: int
    meta_steps: int
    meta_loss: float
    rate: float
    failed: int


class TrainingSummary(NamedTuple):
    """What a call of :func:`train` did; ``finished`` is False if it was asked to stop."""

    meta_step: int
    finished: bool
    meta_loss: float
    failed: int
    seconds: float


def train(
    rule: Rule,
    family: TaskFamily,
    training: TrainingConfig,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    run: Run | None = None,
    resume: bool = False,
    report: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainingSummary:
    """Meta-trains ``rule`` in place on ``family``, and notes on it how, for :func:`save`.

    With a ``run`` the metrics, the rule and the state of the run are kept in its folder, which no other process trains
    in meanwhile; ``resume`` goes on from there, from the newest state that can be read, or begins where nothing was
    saved yet. ``report`` is told after every meta-step; when ``should_stop`` says so the run saves and returns.

    Raises ``UserError`` for a rule without meta-parameters, for a state that does not fit, for losses that rule or
    objective cannot read, and when all tasks fail window after window; the last saved state then stays. So it does for
    a ``run`` that another process has, one whose state is lost though its rule is there, and one to begin that has
    begun.
    """
    if not any(True for _ in rule.parameters()):
        raise UserError(f"{type(rule).__name__} has no meta-parameters: there is nothing to train, evaluate it instead")
    if run is None:
        return _train(Trainer(rule, family, training, seed, device, dtype), None, seed, report, should_stop)
    run.lock()
    try:
        trainer = Trainer(rule, family, training, seed, device, dtype)
        _begin(trainer, run, resume)
        return _train(trainer, run, seed, report, should_stop)
    finally:
        run.close()


def _begin(trainer: Trainer, run: Run, resume: bool) -> None:
    """Brings trainer and metrics to where the run stands."""
    if not resume and (state_paths(run.folder) or run.rule_path.exists()):
        raise UserError(f"{run.folder} holds a training already: go on with it by resume=True, or take another folder")
    saved = run.load(trainer.device)
    if saved is not None:
        trainer.restore(*saved)
    elif run.rule_path.exists():
        raise UserError(
            f"{run.folder} holds a trained rule and no state to go on from ({run.state_path.name} is missing): restore "
            "that file, or train in another folder"
        )
    run.rewind(trainer.meta_step)


def _train(
    trainer: Trainer,
    run: Run | None,
    seed: int,
    report: Callable[[Progress], None] | None,
    should_stop: Callable[[], bool] | None,
) -> TrainingSummary:
    training, began, done, meta_loss = trainer.training, time.perf_counter(), 0, float("nan")
    finished, saved = True, -1
    while trainer.meta_step < training.meta_steps:
        if should_stop is not None and should_stop():
            finished = False
            break
        estimate = trainer.step()
        meta_loss, step = float(estimate.meta_loss), trainer.meta_step
        done += training.tasks * training.window
        progress = Progress(step, training.meta_steps, meta_loss, done / (time.perf_counter() - began), trainer.failed)
        if report is not None:
            report(progress)
        if run is not None and (step % training.log_every == 0 or step == training.meta_steps or estimate.lost):
            last = estimate.losses[-1][estimate.carry.alive]
            run.log(step, {**_metrics(progress, last), **trainer.member_losses()})
        trainer.require_survivors()
        if run is not None and step % training.save_every == 0:
            _save(trainer, run)
            saved = step
    if run is not None and saved != trainer.meta_step:
        _save(trainer, run)
    trainer.rule.config, trainer.rule.meta_step = _config(trainer, run, seed), trainer.meta_step
    seconds = time.perf_counter() - began
    return TrainingSummary(trainer.meta_step, finished, meta_loss, trainer.failed, seconds)


def _config(trainer: Trainer, run: Run | None, seed: int) -> dict[str, Any] | None:
    """What :func:`save` writes beside the rule: the config of the run, or the like, as far as it is plain data."""
    if run is not None:
        return run.config
    if (spec := spec_of(trainer.rule)) is None:
        return trainer.rule.config
    task = spec_of(trainer.family)
    dtype = str(trainer.dtype).removeprefix("torch.")
    settings = {"training": asdict(trainer.training), "seed": seed, "dtype": dtype}
    return {**({"task": task} if task else {}), "rule": spec, **settings}


def _metrics(progress: Progress, losses: Tensor) -> dict[str, float]:
    median = float(losses.median()) if losses.numel() else float("nan")
    return {
        "meta_loss": progress.meta_loss,
        "median_loss": median,
        "task_steps_per_second": progress.rate,
        "failed": progress.failed,
    }


def _save(trainer: Trainer, run: Run) -> None:
    run.save(*trainer.state())
    save(trainer.rule, run.rule_path, run.config, trainer.meta_step)
