"""What followed the last teleports, and what that says about the next.

A teleport leaves the loss where it is; what the optimizer makes of the new place is another matter. A teleport did harm
if the losses after it are above those before it by more than chance:

    mean(after) - mean(before) > Z sqrt(var(before) / n + var(after) / m),

Welch's statistic over the last n and the next m losses, ``WINDOW`` of each or as many as there are between two
teleports. Losses that fall anyway are higher before, so that slower descent alone is no harm. A training *blows up* if
one of the next losses is not finite, or above the highest of the last by that one and by ``BLOWN`` of their standard
deviations: that is said at once, for what is lost then does not come back by itself.

After a harmful teleport the next due one is left out and the one after that goes half as far; two in a row leave out
two and halve twice. Each one without harm doubles the length again. ``patience`` harmful ones in a row end the habit.
"""

from math import inf, isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from meta_teleport.errors import UserError

WINDOW, LEAST = 20, 5
Z, BLOWN = 4.0, 10.0
PATIENCE = 3

Verdict = Literal["", "harm", "blow-up"]


class Habit:
    """How far the next teleport may go and whether it is left out. Raises ``UserError`` for a patience that is none."""

    def __init__(self, patience: float = PATIENCE) -> None:
        whole = isinstance(patience, int) and not isinstance(patience, bool) and patience >= 1
        if not whole and patience != inf:
            raise UserError(f"patience={patience!r}: give a whole number, at least 1, or float('inf') for no end")
        self.patience = patience
        self.harms, self.skips = 0, 0
        self._before: list[Tensor | float] = []
        self._after: list[Tensor | float] | None = None

    @property
    def length(self) -> float:
        """In units of the length that was asked for."""
        return 0.5**self.harms

    @property
    def ended(self) -> bool:
        """Whether there are to be no more teleports."""
        return self.harms >= self.patience

    @property
    def watching(self) -> bool:
        """Whether the losses are held against those before a teleport."""
        return self._after is not None

    def allows(self) -> bool:
        """Whether a teleport that is due may take place; one that is left out has been, by this question."""
        if self.ended or self.skips:
            self.skips = max(self.skips - 1, 0)
            return False
        return True

    def report(self, loss: Tensor | float) -> Verdict:
        """A training loss has become known, and what it says of the last teleport. It is read at once only where one is
        being watched."""
        if self.patience == inf:
            return ""
        if self._after is None:
            self._before = [*self._before, loss][-WINDOW:]
            return ""
        self._after.append(loss)
        if _blown(_read(self._before), float(loss)):
            self._conclude(harmful=True)
            self._before = []
            return "blow-up"
        return self.judge() if len(self._after) == WINDOW else ""

    def teleported(self) -> None:
        """A teleport has been accepted: the losses from here on are held against those before it."""
        if self.patience < inf:
            self._after = []

    def judge(self) -> Verdict:
        """What the losses until now say of the last teleport, which is watched no longer."""
        before, after = self._before, self._after
        if after is None:
            return ""
        self._before = (after if len(after) >= LEAST else [*before, *after])[-WINDOW:]
        harmful = min(len(before), len(after)) >= LEAST and _rises(_read(before), _read(after))
        self._conclude(harmful)
        return "harm" if harmful else ""

    def _conclude(self, harmful: bool) -> None:
        self._after = None
        self.harms = self.harms + 1 if harmful else max(self.harms - 1, 0)
        self.skips = self.harms if harmful else 0

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain numbers."""
        return {
            "harms": self.harms,
            "skips": self.skips,
            "before": _read(self._before).tolist(),
            "after": None if self._after is None else _read(self._after).tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self.harms, self.skips = state["harms"], state["skips"]
        self._before, self._after = state["before"], state["after"]


def _blown(before: Tensor, loss: float) -> bool:
    if not isfinite(loss):
        return True
    if len(before) < LEAST:
        return False
    highest = float(before.max())
    return loss > highest + max(abs(highest), BLOWN * float(before.std()))


def _rises(before: Tensor, after: Tensor) -> bool:
    spread = (before.var() / len(before) + after.var() / len(after)).sqrt()
    return bool(after.mean() - before.mean() > Z * spread)


def _read(losses: list[Tensor | float]) -> Tensor:
    return torch.tensor([float(loss) for loss in losses], dtype=torch.float64)
