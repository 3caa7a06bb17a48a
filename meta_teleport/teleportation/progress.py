"""What is known of a training run between whose steps a model teleports."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from torch import Tensor

WINDOW = 5
"""How many losses before and after a teleport its descents are measured over."""


@dataclass
class Progress:
    """The one record that schedules, rules and the history of teleports go by.

    ``step``: how many steps are done. ``loss``, a number or a tensor of one: the training loss that has become known
    since the schedule was asked last, if one has. ``teleports``: how many were tried; ``spent``: the seconds that they
    took; ``elapsed``: the seconds since training began. ``latest``: the loss that has become known last; ``losses``:
    those since the last accepted teleport, the newest ``WINDOW + 1`` at most.
    """

    step: int = 0
    loss: Tensor | float | None = None
    teleports: int = 0
    spent: float = 0.0
    elapsed: float = 0.0
    latest: Tensor | float | None = None
    losses: list[Tensor | float] = field(default_factory=list)

    def report(self, loss: Tensor | float) -> None:
        """A training loss has become known. It is not read before it is needed."""
        self.loss = self.latest = loss
        self.losses = [*self.losses, loss][-WINDOW - 1 :]

    def teleported(self, seconds: float, accepted: bool) -> None:
        """A teleport has been tried, in so many ``seconds``."""
        self.teleports, self.spent = self.teleports + 1, self.spent + seconds
        if accepted:
            self.losses = []

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, by the names of the fields."""
        known = {"loss": self.loss, "latest": self.latest}
        numbers = {name: None if loss is None else float(loss) for name, loss in known.items()}
        return {**vars(self), **numbers, "losses": [float(loss) for loss in self.losses]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        vars(self).update(vars(Progress(**state)))


class Clock:
    """The seconds since training began, ``elapsed`` of them before now; copies and pickles go on from where they are
    made."""

    def __init__(self, elapsed: float = 0.0) -> None:
        self._began = perf_counter() - elapsed

    def __call__(self) -> float:
        return perf_counter() - self._began

    def __getstate__(self) -> float:
        return self()

    def __setstate__(self, elapsed: float) -> None:
        self._began = perf_counter() - elapsed
