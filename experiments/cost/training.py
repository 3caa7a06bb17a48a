"""Training steps, with teleports or without, as work to be timed."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from torch.optim import SGD, Adam, Optimizer

import meta_teleport as mt
from experiments.cost.networks import Network, loss
from experiments.lab.timing import Work

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": partial(SGD, lr=1e-3, momentum=0.9),
    "Adam": partial(Adam, lr=1e-4),
}


@dataclass
class Training:
    """Steps on a copy of a network: by the optimizer alone (``every`` is None), or wrapped, with a teleport of 10
    ascent steps after every ``every`` of them (0: never)."""

    network: Network
    optimizer: str
    every: int | None = None
    state: str = "transport"
    teleports: list[list[Any]] = field(default_factory=list)

    def work(self) -> Work:
        """As many steps as make one teleport."""
        return Work(self._begin, self.every or 1)

    def _begin(self) -> Callable[[], None]:
        model, batch = deepcopy(self.network.model), self.network.batch
        optimizer = OPTIMIZERS[self.optimizer](model.parameters())
        if self.every is not None:
            optimizer = self._wrapped(optimizer, model)

        def cycle(steps: int = self.every or 1) -> None:
            for _ in range(steps):
                optimizer.zero_grad()
                loss(model, batch).backward()
                optimizer.step()

        cycle(1)
        return cycle

    def _wrapped(self, base: Optimizer, model: Any) -> mt.TeleportedOptimizer:
        batch, schedule = self.network.batch, self.every or ()
        wrapped = mt.TeleportedOptimizer(
            base,
            model,
            self.network.symmetry,
            schedule=schedule,
            loss=loss,
            batches=lambda: batch,
            state=self.state,
            imbalance=inf,  # teleports on one batch in a row pile up, and the cost of those that act is asked for
        )
        self.teleports.append(wrapped.teleports)
        return wrapped

    @property
    def accepted(self) -> float | None:
        """The part of all teleports so far that were accepted; None if there was none."""
        tried = [record.accepted for records in self.teleports for record in records]
        return sum(tried) / len(tried) if tried else None
