"""The record of the teleports of one training run, and the known signs that a teleport did not help.

Signs are not errors: the loss at the teleport is unchanged all the same. They are

    ill-conditioned element        cond(g) above 1 / sqrt(eps): half of the digits of the moved weights are rounding
                                   (positive scalings round nothing away, however uneven)
    undone                         the loss blew up, and the training went back to the place before the teleport
    the loss rose afterwards       by more than chance, see :mod:`meta_teleport.safeguards.habit`
    no faster descent afterwards   the loss does not fall faster over the next few losses than over those before
    worse validation loss          the first validation loss after the teleport is above the last one before

The last four need losses: those that ``step(closure)`` returns, or those that are reported.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor

from meta_teleport.symmetry.groups import Group
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.acceptance import condition_number
from meta_teleport.teleportation.progress import WINDOW, Progress
from meta_teleport.teleportation.teleport import Teleport

ILL_CONDITIONED = "ill-conditioned element"
HARM = "the loss rose afterwards"
UNDONE = "undone: the loss blew up afterwards"
NO_FASTER = "no faster descent afterwards"
WORSE_VALIDATION = "worse validation loss"


@dataclass
class TeleportRecord:
    """One teleport.

    ``step``: how many steps of the base optimizer came before; ``sizes``: per site, ||g - e||_F, which is the Frobenius
    norm of the algebra coordinates to first order (0 where nothing moved); ``before`` and ``after``: the objective, nan
    where there is none; ``drift``: |L(g.w) - L(w)| / max(|L(w)|, 1), nan where no loss is known; ``seconds``: of
    wall-clock time, search and state included; ``accepted``, or the ``reason`` why not; ``signs``: see the module.
    """

    step: int
    sizes: dict[str, float]
    before: float
    after: float
    drift: float
    seconds: float
    accepted: bool
    reason: str = ""
    signs: tuple[str, ...] = ()


class History:
    """All records, and the losses before the last accepted teleport, which those after it are held against."""

    def __init__(self) -> None:
        self.records: list[TeleportRecord] = []
        self._before: list[Tensor | float] | None = None
        self._validation: float | None = None
        self._validated = True

    def add(self, record: TeleportRecord, progress: Progress) -> None:
        """A teleport has been tried; if it was accepted, its losses are watched from now on."""
        if record.accepted:
            self._judge(progress.losses)
            self._before, self._validated = progress.losses[-WINDOW:], False
        self.records.append(record)
        progress.teleported(record.seconds, record.accepted)

    def watch(self, progress: Progress) -> None:
        """A training loss has become known: with enough of them the last accepted teleport is judged."""
        if self._before is not None and len(progress.losses) > WINDOW:
            self._judge(progress.losses)

    def validate(self, loss: float) -> None:
        """The validation loss at the present weights has become known."""
        if not self._validated and self._validation is not None and loss > self._validation:
            self.sign(WORSE_VALIDATION)
        self._validation, self._validated = loss, True

    def state_dict(self) -> dict[str, Any]:
        """Records and losses before the last teleport as plain numbers and strings."""
        return {
            "records": [asdict(record) for record in self.records],
            "before": None if self._before is None else [float(loss) for loss in self._before],
            "validation": self._validation,
            "validated": self._validated,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self.records = [TeleportRecord(**{**r, "signs": tuple(r["signs"])}) for r in state["records"]]
        self._before = state["before"]
        self._validation, self._validated = state["validation"], state["validated"]

    def _judge(self, after: list[Tensor | float]) -> None:
        """Compares the descents before and ``after`` the last accepted teleport. The first loss after it belongs to
        both: the teleport itself leaves the loss alone."""
        if self._before and len(after) > 1 and not _descent(after) > _descent([*self._before, after[0]]):
            self.sign(NO_FASTER)
        self._before = None

    def sign(self, sign: str) -> None:
        """Adds a sign to the record of the last accepted teleport."""
        last = next(record for record in reversed(self.records) if record.accepted)
        last.signs += (sign,)


def describe(found: Teleport, symmetry: Symmetry, step: int, seconds: float) -> TeleportRecord:
    """The record of a teleport after ``step`` steps that took so many ``seconds`` in all."""
    pairs = list(zip(symmetry.sites, found.elements, strict=True))
    return TeleportRecord(
        step=step,
        sizes={site.name: float((g - site.group.identity().to(g)).norm()) for site, g in pairs},
        before=found.before,
        after=found.after,
        drift=found.drift,
        seconds=seconds,
        accepted=found.accepted,
        reason=found.reason,
        signs=(ILL_CONDITIONED,) if any(_ill_conditioned(site.group, g) for site, g in pairs) else (),
    )


def refused(reason: str, symmetry: Symmetry, step: int, seconds: float) -> TeleportRecord:
    """The record of a teleport that was not even looked for."""
    return TeleportRecord(step, {site.name: 0.0 for site in symmetry.sites}, nan, nan, nan, seconds, False, reason)


def _ill_conditioned(group: Group, g: Tensor) -> bool:
    return not condition_number(group, g) <= torch.finfo(g.dtype).eps ** -0.5


def _descent(losses: Sequence[Tensor | float]) -> float:
    """The mean fall per loss."""
    return (float(losses[0]) - float(losses[-1])) / (len(losses) - 1)
