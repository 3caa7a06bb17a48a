"""Looking ahead: a few steps of the optimizer from both places, before a teleport is carried out.

A steeper place is not always one from which descent is faster: past the edge of stability it is slower, and diverges.
So both places are tried, by n steps of a copy of the optimizer on a copy of the model, on the same batches and random
numbers, and the losses on one more batch are compared. Per teleport that costs 2 n steps and one copy of model and
state at a time, n more for every try at half the length, and n + 1 further batches. Schedulers, clipping and gradient
scaling are not part of it.
"""

from collections.abc import Callable
from copy import deepcopy
from math import inf, isfinite
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from meta_teleport.errors import UserError
from meta_teleport.teleportation.acceptance import rounding
from meta_teleport.teleportation.binding import ModelLoss, Randomness
from meta_teleport.teleportation.ranks import Ranks
from meta_teleport.teleportation.teleport import Teleport

Copies = dict[int, Any]
"""What was copied, by its ``id``: the memo of ``deepcopy``."""
Repeat = Callable[[Teleport, Optimizer, nn.Module, Copies], None]
"""Carries a teleport out in copies of the optimizer and its model."""


class Lookahead:
    """``steps`` virtual steps of ``base`` on batches that ``batches()`` gives. Neither it nor ``model`` changes, nor do
    the global random generators.

    Raises ``UserError`` for steps that are none, without loss and batches, and for processes that train one model
    together.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        loss: ModelLoss | None,
        batches: Callable[[], Any] | None,
        steps: int,
        ranks: Ranks,
    ) -> None:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise UserError(f"lookahead={steps!r}: give a whole number of steps, 0 for none")
        if steps and (loss is None or batches is None):
            raise UserError("lookahead tries steps: give loss=... and batches=..., or leave it at 0")
        self._base, self._model, self._loss, self._batches = base, model, loss, batches
        self._steps, self._ranks = steps, ranks
        self._given: list[Any] = []
        self._here = inf

    def begin(self) -> None:
        """Another teleport is to be looked at: draws the batches, and tries the place where the model is."""
        if not self._steps:
            return
        if self._ranks.group is not None:
            raise UserError("lookahead is for one process: leave it at 0 where processes train one model together")
        assert self._batches is not None
        self._given = [self._batches() for _ in range(self._steps + 1)]
        self._randomness = Randomness(self._model)
        self._here = self._end(lambda base, model, copies: None)

    def fault(self, found: Teleport, repeat: Repeat) -> str:
        """Why this teleport would do harm, in one line; empty if the loss ends no higher from there than from here, but
        for rounding."""
        if not self._steps:
            return ""
        there = self._end(lambda base, model, copies: repeat(found, base, model, copies))
        slack = rounding(next(iter(found.params.values())).dtype)
        if not isfinite(self._here) or there <= self._here + slack * abs(self._here):
            return ""
        return f"{self._steps} steps from there end at a loss of {there:.4g}, those from here at {self._here:.4g}"

    def finish(self) -> None:
        """Lets the batches go."""
        self._given = []

    def _end(self, arrive: Callable[[Optimizer, nn.Module, Copies], None]) -> float:
        """The loss after the steps, of copies that have arrived somewhere."""
        assert self._loss is not None
        loss, copies = self._loss, Copies()
        model = deepcopy(self._model, copies)
        base = copied(self._base, copies)
        arrive(base, model, copies)
        *batches, last = self._given
        with self._randomness.replayed(), torch.enable_grad():
            for batch in batches:

                def closure(batch: Any = batch) -> Any:
                    base.zero_grad()
                    value = loss(model, batch)
                    value.backward()
                    return value

                base.step(closure)
            with torch.no_grad():
                return float(loss(model, last))


def copied(base: Optimizer, copies: Copies) -> Optimizer:
    """A copy of an optimizer, of parameters that are among the ``copies``. What it holds beside state and groups comes
    along, which torch's own copies leave behind; hooks, and steps that schedulers have wrapped, do not."""
    other = deepcopy(base, copies)
    for name, value in vars(base).items():
        if name not in vars(other) and name != "step":
            vars(other)[name] = deepcopy(value, copies)
    return other
