"""One method on held-out tasks: what it reaches, when, and how it fails.

Where the loss is what counts, :func:`measure` gives it at every step. Where batches are a
part of the data, the error of the tasks is measured now and then, and the clock stands still meanwhile.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.held_out.members import Setting
from meta_teleport.evaluation.measurement import WARM_UP_STEPS, Stopwatch, measure
from meta_teleport.evaluation.methods import Method
from meta_teleport.meta.unroll import Carry, failure_limit, start, unroll
from meta_teleport.params import Params, where
from meta_teleport.runs.checkpoint import load_tensors, save_tensors
from meta_teleport.tasks.classification import ClassificationTasks
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.language import LanguageTasks

LARGEST = 1e200


class Outcome(NamedTuple):
    """Losses or errors ``(measurements, tasks)`` in float64, the ``steps`` and ``seconds`` they were taken at, and
    ``numbers``: failed tasks, teleports undone, the largest ratio to the start (``highest``), the settings used."""

    values: Tensor
    steps: Tensor
    seconds: Tensor
    numbers: dict[str, Any]

    def at(self, step: int) -> Tensor:
        """Values ``(tasks,)`` after ``step`` steps, which must have been measured."""
        return self.values[int((self.steps == step).nonzero()[0])]

    def save(self, path: Path) -> None:
        """Into one file, whole or not at all."""
        tensors = {"values": self.values, "steps": self.steps, "seconds": self.seconds}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, tensors, self.numbers)

    @classmethod
    def load(cls, path: Path) -> "Outcome":
        """The inverse of :meth:`save`."""
        tensors, numbers = load_tensors(path)
        return cls(tensors["values"], tensors["steps"], tensors["seconds"], numbers)


def run(method: Method, tasks: Tasks, steps: int, setting: Setting) -> Outcome:
    """``steps`` steps of a method."""
    return follow(method, tasks, steps, setting) if setting.stochastic else every_step(method, tasks, steps)


def every_step(method: Method, tasks: Tasks, steps: int) -> Outcome:
    """The losses at the start and after every step."""
    found = measure(method, tasks, steps)
    numbers: dict[str, Any] = {"failed": found.failed, "undone": found.rejected, "highest": highest(found.losses)}
    numbers |= {"teleports": found.teleports * tasks.count, "settings": method.settings}
    numbers |= {"drift": found.drift_max, "output_drift": found.output_drift_max}
    return Outcome(found.losses, torch.arange(steps + 1), found.seconds, numbers)


@torch.no_grad()
def follow(method: Method, tasks: Tasks, steps: int, setting: Setting) -> Outcome:
    """The errors at the start and ``setting.measured`` times up to every horizon. A task that failed counts with
    1e6 times its first error from then on."""
    every = setting.horizon // setting.measured
    shown = sorted({*range(0, steps + 1, every), steps})
    interventions = () if method.interventions is None else method.interventions.at
    stops = sorted({*shown, *(s for at in interventions for s in (at, at + 1) if s <= steps)})
    _steps(method, tasks, start(method.rule, tasks), WARM_UP_STEPS)
    carry, clock = start(method.rule, tasks), Stopwatch(torch.device("cpu"))
    rows, seconds, spent = [reported(tasks, carry)], [0.0], 0.0
    for first, last in pairwise(stops):
        with clock.running():
            if first in interventions:
                carry = _intervene(method, tasks, carry)
            carry = _steps(method, tasks, carry, last - first)
        spent += clock.lap()
        if last in shown:
            rows.append(torch.where(carry.alive, reported(tasks, carry), failure_limit(rows[0])))
            seconds.append(spent)
    values = torch.stack(rows).double().nan_to_num(LARGEST, LARGEST).clamp(max=LARGEST)
    numbers = {"failed": int((~carry.alive).sum()), "undone": int(carry.rejected.sum()), "highest": highest(values)}
    times = torch.tensor(seconds, dtype=torch.float64)
    return Outcome(values, torch.tensor(shown), times, {**numbers, "settings": method.settings})


def reported(tasks: Tasks, carry: Carry) -> Tensor:
    """What counts, ``(tasks,)``: the loss on test images, or the excess over a language, where tasks have these, else
    their error."""
    if isinstance(tasks, ClassificationTasks):
        return tasks.test_loss(carry.params)
    return tasks.excess(carry.params) if isinstance(tasks, LanguageTasks) else tasks.error(carry.params, carry.step)


def highest(values: Tensor) -> float:
    """The largest ratio of a value to the first one of its task, over tasks and measurements ``(points, tasks)``."""
    return float((values / values[:1]).max())


def meta_parameters(method: Method, tasks: Tasks) -> Params:
    """The numbers of a rule in the precision of the tasks."""
    like = next(iter(tasks.params.values()))
    return {name: p.detach().to(like) for name, p in (*method.rule.named_parameters(), *method.rule.named_buffers())}


def _steps(method: Method, tasks: Tasks, carry: Carry, count: int) -> Carry:
    return unroll(method.rule, meta_parameters(method, tasks), tasks, carry, count)[1]


def _intervene(method: Method, tasks: Tasks, carry: Carry) -> Carry:
    assert method.interventions is not None
    moved = method.interventions.move(tasks, carry.params, carry.step)
    return carry._replace(params=where(carry.alive, moved, carry.params))
