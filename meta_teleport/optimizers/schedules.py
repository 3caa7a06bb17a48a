"""When to teleport: schedules.

A schedule answers one question, is a teleport due?, once before the first step of an optimizer and once after each of
its steps. A teleport after step t is therefore one between the steps t and t + 1.
"""

from collections.abc import Iterable
from math import inf
from typing import Any

from meta_teleport.errors import UserError
from meta_teleport.teleportation.progress import Progress


class Schedule:
    """The base of all schedules. A schedule that remembers something also has the two functions of its state.

    Attributes:
        counts: It goes by the number of steps alone, so that many processes need not ask each other.
    """

    counts: bool = False

    def due(self, progress: Progress) -> bool:
        """Whether to teleport now."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What the schedule remembers, as plain numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""


class Every(Schedule):
    """After every ``k`` steps. Raises ``UserError`` if k is not a positive whole number."""

    counts = True

    def __init__(self, k: int) -> None:
        self.k = _whole(k, 1, "Every: k")

    def due(self, progress: Progress) -> bool:
        return progress.step > 0 and progress.step % self.k == 0


class Steps(Schedule):
    """After each of the given numbers of steps; 0 is before the first step. None given: never.

    Raises ``UserError`` for numbers that do not count steps.
    """

    counts = True

    def __init__(self, steps: Iterable[int] = ()) -> None:
        self.steps = frozenset(_whole(step, 0, "Steps: a step") for step in steps)

    def due(self, progress: Progress) -> bool:
        return progress.step in self.steps


class Epochs(Steps):
    """At the beginning of each of the given epochs, which are counted from 0, as in the paper's experiments.

    Raises ``UserError`` for numbers that do not count epochs or steps.
    """

    def __init__(self, epochs: Iterable[int], steps_per_epoch: int) -> None:
        length = _whole(steps_per_epoch, 1, "Epochs: steps_per_epoch")
        super().__init__(_whole(epoch, 0, "Epochs: an epoch") * length for epoch in epochs)


class Plateau(Schedule):
    """When ``patience`` losses in a row were not below ``1 - threshold`` times the best one before them (for negative
    losses, ``1 + threshold`` times). Then the count begins anew.

    The losses are those that ``step(closure)`` returns or that are reported to the optimizer; each is read on the host,
    which on a GPU waits for it. Raises ``UserError`` if there is none within ``patience`` steps, and for a ``patience``
    or ``threshold`` that is none.
    """

    def __init__(self, patience: int = 10, threshold: float = 1e-4) -> None:
        if not 0 <= threshold < 1:
            raise UserError(f"Plateau: threshold is {threshold}: give a share between 0 and 1, such as 1e-4")
        self.patience, self.threshold = _whole(patience, 1, "Plateau: patience"), threshold
        self.best, self.waited, self.seen = inf, 0, False

    def due(self, progress: Progress) -> bool:
        if progress.loss is None:
            if not self.seen and progress.step > self.patience:
                raise UserError(
                    f"Plateau has seen no loss for {progress.step} steps: pass a closure to step, or call "
                    "report(loss=...) on the optimizer"
                )
            return False
        loss, self.seen = float(progress.loss), True
        margin = self.threshold * abs(self.best) if self.best < inf else 0.0
        if loss < self.best - margin:
            self.best, self.waited = loss, 0
            return False
        self.waited = (self.waited + 1) % self.patience
        return self.waited == 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited, self.seen = state["best"], state["waited"], state["seen"]


class Budget(Schedule):
    """When another schedule says so and the time allows it: all teleports together take at most ``seconds``, or at
    most this ``share`` of the time since training began.

    The next teleport is expected to take as long as the mean of those before it; the first is always allowed. Which
    teleports happen depends on the clock, so two runs differ. Raises ``UserError`` unless exactly one limit is given,
    and for limits that are none.
    """

    def __init__(
        self, schedule: "Schedule | int | Iterable[int]", *, seconds: float | None = None, share: float | None = None
    ) -> None:
        if (seconds is None) == (share is None):
            raise UserError("Budget: give either seconds=... or share=... (of the time since training began)")
        if (seconds is not None and not seconds > 0) or (share is not None and not 0 < share < 1):
            raise UserError(
                f"Budget: seconds={seconds}, share={share}: seconds are positive, a share is between 0 and 1"
            )
        self.schedule, self.seconds, self.share = as_schedule(schedule), seconds, share or 0.0

    def due(self, progress: Progress) -> bool:
        if not self.schedule.due(progress):
            return False
        if progress.teleports == 0:
            return True
        allowed = self.seconds if self.seconds is not None else self.share * progress.elapsed
        return progress.spent + progress.spent / progress.teleports <= allowed

    def state_dict(self) -> dict[str, Any]:
        return self.schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state)


def as_schedule(schedule: Schedule | int | Iterable[int]) -> Schedule:
    """A schedule as it is, a whole number k as ``Every(k)``, a list of numbers as ``Steps``.

    Raises ``UserError`` for anything else.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, int) and not isinstance(schedule, bool):
        return Every(schedule)
    if isinstance(schedule, Iterable) and not isinstance(schedule, str | bytes):
        return Steps(schedule)
    raise UserError(
        f"{schedule!r} is not a schedule: give a number of steps k (every k steps), a list of steps, or Every, Steps, "
        "Epochs, Plateau or Budget"
    )


def _whole(number: Any, least: int, what: str) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise UserError(f"{what} is {number!r}: give a whole number, at least {least}")
    return number
