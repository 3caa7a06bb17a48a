"""What comes of the teleports of a training: the habit, and the way back from a place where it blows up."""

import warnings
from math import inf
from typing import Literal

from torch import Tensor, nn

from meta_teleport.params import Writes, write_at_once
from meta_teleport.safeguards.habit import Habit, Verdict

Outcome = Literal["", "harm", "undone"]


class Retreat:
    """Copies of the trainable parameters and the buffers of ``model``, between :meth:`keep` and :meth:`forget`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._kept: Writes = []

    @property
    def ready(self) -> bool:
        """Whether there is a place to go back to."""
        return bool(self._kept)

    def keep(self) -> None:
        """The model is about to teleport."""
        moving = [p for p in self.model.parameters() if p.requires_grad]
        self._kept = [(t, t.detach().clone()) for t in (*moving, *self.model.buffers())]

    def forget(self) -> None:
        """The teleport did no harm that would be worth going back."""
        self._kept = []

    def take(self) -> None:
        """Goes back."""
        write_at_once(self._kept)
        self.forget()


class Aftermath:
    """The :class:`Habit` of ``patience`` that ``model`` has of teleporting, and its :class:`Retreat` while the last
    teleport is being watched. Where that was *undone* the model is where it was before.

    Raises ``UserError`` for a patience that is none.
    """

    def __init__(self, model: nn.Module, patience: float) -> None:
        self.habit, self._retreat = Habit(patience), Retreat(model)

    def keep(self) -> None:
        """The model is about to teleport."""
        if self.habit.patience < inf:
            self._retreat.keep()

    def report(self, loss: Tensor | float) -> Outcome:
        """A training loss has become known: what came of the last teleport."""
        return self._follow(self.habit.report(loss))

    def judge(self) -> Outcome:
        """What has come of the last teleport until now; it is watched no longer."""
        return self._follow(self.habit.judge())

    def warn_of_the_end(self) -> None:
        """Warns where harm has ended the habit."""
        if self.habit.ended:
            warnings.warn(
                f"the loss rose after {self.habit.harms} teleports in a row: there are no more. A gauge such as "
                "'balanced', or a smaller size, does less harm; patience=float('inf') goes on",
                stacklevel=4,
            )

    def _follow(self, verdict: Verdict) -> Outcome:
        undone = verdict == "blow-up" and self._retreat.ready
        if undone:
            self._retreat.take()
        if not self.habit.watching:
            self._retreat.forget()
        return "undone" if undone else "harm" if verdict else ""
