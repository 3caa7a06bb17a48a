"""The tasks of one family that are in training: how far each is, and when it makes way for another."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.estimators import Estimate
from meta_teleport.meta.unroll import NEVER
from meta_teleport.tasks.family import Tasks


class TaskPool:
    """``training.tasks`` tasks side by side, each with its carry and the step at which it is due to be replaced.

    ``sample(count)`` draws tasks and ``start(tasks)`` gives the carry before their first step. ``lost`` counts the
    windows in a row of which no task has survived. A carry is the
    estimator's business, but for ``carry.step`` and ``carry.alive``, both ``(tasks,)``, and the task dimension in front
    of all its tensors.
    """

    def __init__(
        self,
        sample: Callable[[int], Tasks],
        start: Callable[[Tasks], Any],
        training: TrainingConfig,
    ) -> None:
        self._sample, self._start, self.training = sample, start, training
        self.tasks: Tasks = sample(training.tasks)
        self.carry = start(self.tasks)
        self.due, self.meta_loss = self._first_due(), float("nan")
        self.lost = 0

    def renew(self) -> None:
        """Puts fresh tasks in the place of those that are through their horizon, or have failed."""
        index = ((self.carry.step >= self.due) | ~self.carry.alive).nonzero().squeeze(1)
        if len(index):
            fresh = self._sample(len(index))
            self.tasks = self.tasks.put(index, fresh)
            self.carry = tree_map(lambda old, new: old.index_copy(0, index, new), self.carry, self._start(fresh))
            self.due = self.due.index_copy(0, index, self._lives(len(index)))

    def follow(self, estimate: Estimate) -> None:
        """Goes on from where a window has led."""
        self.carry, self.meta_loss = estimate.carry, float(estimate.meta_loss)
        self.lost = self.lost + 1 if estimate.lost else 0

    def unusable(self) -> int:
        """How many tasks have not begun, and cannot: their initial losses are not finite."""
        return int((~self.carry.alive & (self.carry.step == 0)).sum())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of it as tensors and numbers."""
        tensors = {f"tasks.params.{name}": p for name, p in self.tasks.params.items()}
        tensors |= {f"tasks.data.{name}": p for name, p in self.tasks.data.items()}
        tensors |= {f"carry.{i}": leaf for i, leaf in enumerate(tree_flatten(self.carry)[0])}
        return {**tensors, "due": self.due}, {"meta_loss": self.meta_loss}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of :meth:`state`, of which all names must be there; others are ignored."""
        self.tasks = replace(
            self.tasks,
            params={name: tensors[f"tasks.params.{name}"] for name in self.tasks.params},
            data={name: tensors[f"tasks.data.{name}"] for name in self.tasks.data},
        )
        leaves, structure = tree_flatten(self.carry)
        saved = [_with_step_of_failure(tensors[f"carry.{i}"], leaf) for i, leaf in enumerate(leaves)]
        self.carry = tree_unflatten(saved, structure)
        self.due, self.meta_loss = tensors["due"], numbers["meta_loss"]

    def _first_due(self) -> Tensor:
        """The step at which each task is replaced: staggered first lives are cut to all multiples of the window."""
        lives = self._lives(self.training.tasks)
        if not self.training.staggered:
            return lives
        window = self.training.window
        return window * (1 + torch.arange(len(lives), device=lives.device) % (self.training.horizon // window))

    def _lives(self, count: int) -> Tensor:
        """How many steps fresh tasks are trained for, ``(count,)``."""
        return torch.full((count,), self.training.horizon, device=self.carry.step.device)


def _with_step_of_failure(saved: Tensor, leaf: Tensor) -> Tensor:
    """A tensor of a saved carry in place of ``leaf``. States of version 0.1 say which tasks are alive, not since when
    they are not: these have failed at an unknown step, and make way at the next window."""
    of_alive = saved.dtype == torch.bool and leaf.dtype != torch.bool
    return torch.where(saved, NEVER, 0) if of_alive else saved
