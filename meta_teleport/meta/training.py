"""The outer loop: sample tasks, estimate the meta-gradient of a window, step phi, record, save.

    for every meta-step:
        replace the tasks that are through their horizon, or have failed, by fresh ones
        meta-loss, gradient, carry = estimate(one window of all tasks)
        phi <- Adam(gradient)

A run stops between two windows and resumes bit for bit: phi, Adam's moments, tasks, carry and generator are all in
``training.safetensors``.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from math import cos, pi
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from meta_teleport.checkpoint import load_tensors, save_tensors
from meta_teleport.errors import UserError
from meta_teleport.learned.load import save
from meta_teleport.learned.rule import Rule
from meta_teleport.meta.estimators import OBJECTIVES, Estimate, truncated_bptt
from meta_teleport.meta.settings import Training
from meta_teleport.meta.unroll import Carry, start
from meta_teleport.params import Params
from meta_teleport.record import Run
from meta_teleport.tasks.family import TaskFamily, Tasks

STILL_FALLING = 0.9


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


class Trainer:
    """The state of a run between two windows."""

    def __init__(
        self,
        rule: Rule,
        family: TaskFamily,
        training: Training,
        seed: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.rule, self.family, self.training = rule.to(device, dtype), family, training
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.phi: Params = dict(rule.named_parameters())
        groups = {"update": training.lr_update, "element": training.lr_element}
        names = rule.meta_groups()
        self.adam = torch.optim.Adam(
            [{"params": [self.phi[name] for name in names[key]], "lr": lr} for key, lr in groups.items() if names[key]]
        )
        self.peaks = [group["lr"] for group in self.adam.param_groups]
        self.tasks: Tasks = self._fresh(training.tasks)
        self.carry: Carry = start(rule, self.tasks)
        self.meta_step, self.failed = 0, 0
        self.horizon = training.window if training.growing_horizon else training.horizon
        self.due = self._first_due()

    def step(self) -> Estimate:
        """One meta-step: fresh tasks where due, one window, one update of phi."""
        t = self.training
        self._replace_tasks()
        estimate = truncated_bptt(
            self.rule,
            self.phi,
            self.tasks,
            self.carry,
            t.window,
            OBJECTIVES[t.objective],
            second_order=t.second_order,
            losses_before=t.losses_before,
        )
        self.carry, self.failed = estimate.carry, self.failed + estimate.failed
        self._descend(estimate.gradient)
        self._grow_horizon(estimate.losses)
        self.meta_step += 1
        return estimate

    def _descend(self, gradient: Params) -> None:
        for name, p in self.phi.items():
            p.grad = gradient[name]
        if self.training.clip:
            torch.nn.utils.clip_grad_norm_(self.phi.values(), self.training.clip)
        if self.training.decay == "cosine":
            factor = 0.5 * (1 + cos(pi * self.meta_step / self.training.meta_steps))
            for group, peak in zip(self.adam.param_groups, self.peaks, strict=True):
                group["lr"] = peak * factor
        self.adam.step()
        self.adam.zero_grad()

    def _fresh(self, count: int) -> Tasks:
        return self.family.sample(count, self.generator, "train", self.dtype, self.device)

    def _first_due(self) -> Tensor:
        """The step at which each task is replaced: the first lives are cut to all multiples of the window."""
        lives = torch.full((self.training.tasks,), self.horizon, device=self.device)
        if self.training.staggered:
            windows = self.horizon // self.training.window
            lives = self.training.window * (1 + torch.arange(self.training.tasks, device=self.device) % windows)
        return lives

    def _replace_tasks(self) -> None:
        index = ((self.carry.step >= self.due) | ~self.carry.alive).nonzero().squeeze(1)
        if len(index):
            fresh = self._fresh(len(index))
            self.tasks = self.tasks.put(index, fresh)
            self.carry = tree_map(lambda old, new: old.index_copy(0, index, new), self.carry, start(self.rule, fresh))
            self.due = self.due.index_fill(0, index, self.horizon)

    def _grow_horizon(self, losses: Tensor) -> None:
        ending = (self.carry.step >= self.due) & self.carry.alive
        if self.horizon < self.training.horizon and bool(ending.any()):
            falling = (losses[-1] <= losses[0])[ending].double().mean()
            if falling >= STILL_FALLING:
                self.horizon = min(2 * self.horizon, self.training.horizon)

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Everything the next meta-step depends on, as tensors and numbers."""
        tensors = {f"phi.{name}": p.detach() for name, p in self.phi.items()}
        for name, p in self.phi.items():
            tensors |= {f"adam.{name}.{key}": value for key, value in self.adam.state[p].items()}
        tensors |= {f"tasks.params.{name}": p for name, p in self.tasks.params.items()}
        tensors |= {f"tasks.data.{name}": p for name, p in self.tasks.data.items()}
        tensors |= {f"carry.{i}": leaf for i, leaf in enumerate(tree_flatten(self.carry)[0])}
        tensors |= {"due": self.due, "generator": self.generator.get_state()}
        return tensors, {"meta_step": self.meta_step, "failed": self.failed, "horizon": self.horizon}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
        """The inverse of :meth:`state`. Raises ``UserError`` for the state of another rule, family or version."""
        own = self.state()[0]
        if any(name not in tensors or tensors[name].shape != own[name].shape for name in own):
            raise UserError(
                "the saved state is of another rule, family or version: start the run anew in another folder"
            )
        for name, p in self.phi.items():
            p.data.copy_(tensors[f"phi.{name}"])
            prefix = f"adam.{name}."
            state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if state:
                self.adam.state[p] = {**state, "step": state["step"].cpu()}
        self.tasks = replace(
            self.tasks,
            params={name: tensors[f"tasks.params.{name}"] for name in self.tasks.params},
            data={name: tensors[f"tasks.data.{name}"] for name in self.tasks.data},
        )
        leaves, structure = tree_flatten(self.carry)
        self.carry = tree_unflatten([tensors[f"carry.{i}"] for i in range(len(leaves))], structure)
        self.due = tensors["due"]
        self.generator.set_state(tensors["generator"].cpu())
        self.meta_step, self.failed, self.horizon = numbers["meta_step"], numbers["failed"], numbers["horizon"]


def train(
    rule: Rule,
    family: TaskFamily,
    training: Training,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    run: Run | None = None,
    resume: bool = False,
    report: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainingSummary:
    """Meta-trains ``rule`` in place on ``family``.

    With a ``run`` the metrics, the rule and the state of the run are kept in its folder; ``resume`` goes on from
    there. ``report`` is told after every meta-step; when ``should_stop`` says so the run saves and returns.

    Raises ``UserError`` for a rule without meta-parameters and for a state that does not fit.
    """
    if not any(True for _ in rule.parameters()):
        raise UserError(f"{type(rule).__name__} has no meta-parameters: there is nothing to train, evaluate it instead")
    trainer = Trainer(rule, family, training, seed, device, dtype)
    if resume and run is not None:
        trainer.restore(*load_tensors(run.state_path, device))
        run.rewind(trainer.meta_step)
    began, done, meta_loss = time.perf_counter(), 0, float("nan")
    finished = True
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
        if run is not None and (step % training.log_every == 0 or step == training.meta_steps):
            last = estimate.losses[-1][estimate.carry.alive]
            run.log(step, _metrics(progress, last, trainer.horizon))
        if run is not None and step % training.save_every == 0:
            _save(trainer, run)
    if run is not None:
        _save(trainer, run)
    seconds = time.perf_counter() - began
    return TrainingSummary(trainer.meta_step, finished, meta_loss, trainer.failed, seconds)


def _metrics(progress: Progress, losses: Tensor, horizon: int) -> dict[str, float]:
    median = float(losses.median()) if losses.numel() else float("nan")
    return {
        "meta_loss": progress.meta_loss,
        "median_loss": median,
        "task_steps_per_second": progress.rate,
        "failed": progress.failed,
        "horizon": horizon,
    }


def _save(trainer: Trainer, run: Run) -> None:
    tensors, numbers = trainer.state()
    save_tensors(run.state_path, tensors, numbers)
    save(trainer.rule, run.rule_path, run.config, trainer.meta_step)
