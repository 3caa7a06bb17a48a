"""Task families: distributions of problems, sampled as whole batches.

A batch of tasks is used without knowing what they are, each at its own step::

    tasks = Regression(width=8).sample(4, torch.Generator().manual_seed(0))
    step = torch.zeros(tasks.count, dtype=torch.long)
    losses, gradients = value_and_grad(partial(tasks.loss, step=step), tasks.params)  # (4,), {name: (4, *shape)}
    elements = [site.group.sample(4, generator=torch.Generator(), size=0.1) for site in tasks.symmetry.sites]
    moved = tasks.symmetry.act(tasks.params, elements, tasks.inputs(step))
    tasks.loss(moved, step) / losses  # 1 for all four

A family of one's own is a subclass of :class:`TaskFamily` whose ``sample`` returns a subclass of :class:`Tasks`;
the command line takes it by its class path.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from meta_teleport.params import Params
from meta_teleport.specs import Described
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Symmetry

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")


@dataclass(frozen=True)
class Tasks(ABC):
    """A batch of problems side by side: initial parameters and data, each tensor ``(tasks, ...)``."""

    params: Params
    data: dict[str, Tensor]

    @property
    def count(self) -> int:
        """How many problems the batch holds."""
        return next(iter(self.params.values())).shape[0]

    @property
    @abstractmethod
    def symmetry(self) -> Symmetry:
        """The symmetry of the network, one for the whole batch."""

    @property
    def orbit(self) -> Symmetry:
        """What rules and searches move along: the symmetry without groups that have no Lie algebra (permutations)."""
        return self.symmetry.continuous

    @abstractmethod
    def inputs(self, step: Tensor) -> LayerInput:
        """The inputs of the batch that ``loss(params, step)`` is computed on; ``step`` is ``(tasks,)``."""

    @abstractmethod
    def outputs(self, params: Params, step: Tensor) -> Tensor:
        """The network's outputs on that batch, ``(tasks, ...)``."""

    @abstractmethod
    def loss(self, params: Params, step: Tensor) -> Tensor:
        """The loss of each task on the batch of its own ``step``, shape ``(tasks,)``."""

    def error(self, params: Params, step: Tensor) -> Tensor:
        """What training is for, ``(tasks,)``: the loss, unless a family knows better (its expectation, say)."""
        return self.loss(params, step)

    def select(self, index: Tensor) -> Self:
        """The tasks at ``index`` (integers, repetition allowed)."""
        return self._map(lambda tensor: tensor[index])

    def put(self, index: Tensor, fresh: Self) -> Self:
        """These tasks with those at ``index`` replaced by the tasks of ``fresh``."""
        params = {name: t.index_copy(0, index, fresh.params[name]) for name, t in self.params.items()}
        data = {name: t.index_copy(0, index, fresh.data[name]) for name, t in self.data.items()}
        return replace(self, params=params, data=data)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        params = {name: function(tensor) for name, tensor in self.params.items()}
        return replace(self, params=params, data={name: function(t) for name, t in self.data.items()})


class TaskFamily(Described, ABC):
    """A distribution of tasks."""

    @abstractmethod
    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Tasks:
        """``count`` problems of the split. The same generator state gives the same problems on every device and in
        every dtype, and no problem of one split is ever one of the other (:func:`split_generator`)."""

    @property
    def members(self) -> tuple["TaskFamily", ...]:
        """The families that this one is made of: itself alone, but for a mixture."""
        return (self,)


def split_generator(generator: torch.Generator, split: Split) -> torch.Generator:
    """A generator for one batch of one split: its seed is drawn from ``generator``, and the splits divide the seeds
    among them (even: train, odd: held out), so they never share one."""
    draw = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator().manual_seed(len(SPLITS) * draw % 2**63 + SPLITS.index(split))


def mini_batch(rows: Tensor, step: Tensor, batch: int | None) -> Tensor:
    """Each task's mini-batch at its own ``step`` ``(tasks,)``: ``batch`` consecutive rows of its data ``(tasks, points,
    ...)``, which are in random order, from the first again after the last; all rows if ``batch`` is None."""
    if batch is None:
        return rows
    index = ((step * batch).unsqueeze(1) + torch.arange(batch, device=rows.device)) % rows.shape[1]
    return rows[torch.arange(len(rows), device=rows.device).unsqueeze(1), index]
