"""The tasks of one family that are in training: how far each is, and when it makes way for another."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from meta_teleport.meta.config import Training
from meta_teleport.meta.estimators import Estimate
from meta_teleport.meta.unroll import NEVER
from meta_teleport.tasks.family import Tasks

STILL_FALLING = 0.9


class Population:
    """``training.tasks`` tasks side by side, each with its carry and the step at which it is due to be replaced.

    ``sample(count)`` draws tasks and ``start(tasks)`` gives the carry before their first step. A carry is the
    estimator's business, but for ``carry.step`` and ``carry.alive``, both ``(tasks,)``, and the task dimension in front
    of all its tensors. ``generator`` draws the horizons.
    """

    def __init__(
        self,
        sample: Callable[[int], Tasks],
        start: Callable[[Tasks], Any],
        training: Training,
        generator: torch.Generator,
    ) -> None:
        self._sample, self._start, self.training, self.generator = sample, start, training, generator
        self.horizon = training.window if training.growing_horizon else training.horizon
        self.tasks: Tasks = sample(training.tasks)
        self.carry = start(self.tasks)
        self.due, self.meta_loss = self._first_due(), float("nan")

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
        self._grow(estimate.losses)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of it as tensors and numbers."""
        tensors = {f"tasks.params.{name}": p for name, p in self.tasks.params.items()}
        tensors |= {f"tasks.data.{name}": p for name, p in self.tasks.data.items()}
        tensors |= {f"carry.{i}": leaf for i, leaf in enumerate(tree_flatten(self.carry)[0])}
        return {**tensors, "due": self.due}, {"horizon": self.horizon, "meta_loss": self.meta_loss}

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
        self.due, self.horizon = tensors["due"], numbers["horizon"]
        self.meta_loss = numbers["meta_loss"]

    def _first_due(self) -> Tensor:
        """The step at which each task is replaced: staggered first lives are cut to all multiples of the window."""
        lives, window = self._lives(self.training.tasks), self.training.window
        if self.training.random_horizons or not self.training.staggered:
            return lives
        return window * (1 + torch.arange(len(lives), device=lives.device) % (self.horizon // window))

    def _lives(self, count: int) -> Tensor:
        """How many steps fresh tasks are trained for: the horizon, or ``w k`` for the window w, k = 1 .. K and
        ``P(k) = log((k + 1) / k) / log(K + 1)``, the whole part of a number that is log-uniform on [1, K + 1)."""
        device, window = self.carry.step.device, self.training.window
        if not self.training.random_horizons:
            return torch.full((count,), self.horizon, device=device)
        windows = self.horizon // window
        drawn = torch.rand(count, generator=self.generator, dtype=torch.float64)
        return (window * ((windows + 1) ** drawn).long().clamp(max=windows)).to(device)

    def _grow(self, losses: Tensor) -> None:
        """Doubles a growing horizon when nine out of ten of the tasks that are through it still fell in ``losses``."""
        ending = (self.carry.step >= self.due) & self.carry.alive
        if self.horizon < self.training.horizon and bool(ending.any()):
            falling = (losses[-1] <= losses[0])[ending].double().mean()
            if falling >= STILL_FALLING:
                self.horizon = min(2 * self.horizon, self.training.horizon)


def _with_step_of_failure(saved: Tensor, leaf: Tensor) -> Tensor:
    """A tensor of a saved carry in place of ``leaf``. States of version 0.1 say which tasks are alive, not since when
    they are not: these have failed at an unknown step, and make way at the next window."""
    of_alive = saved.dtype == torch.bool and leaf.dtype != torch.bool
    return torch.where(saved, NEVER, 0) if of_alive else saved
