"""Ahead, level or behind: a rule against what would have to explain its gain, in paired ratios with intervals."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from meta_teleport.evaluation.measurement import Measurement
from meta_teleport.evaluation.methods import Method
from meta_teleport.evaluation.statistics import log10, student

Word = Literal["ahead", "level", "behind", "unknown"]

TWINS = ("its twin without teleports", "its twin with random ones")
LARGEST = 300.0
"""Ratios beyond ten to this power count as that, so that all of them are numbers."""


@dataclass(frozen=True)
class Verdict:
    """The rule against one other method after ``step`` steps.

    ``ratio`` is the geometric mean over tasks of the rule's loss divided by the other's, ``ci95`` the interval of
    Student's t for the mean of its logarithm, None with a single task. The rule is *ahead* where the interval lies
    below 1, *behind* where it lies above, *level* where it holds 1; *unknown* without an interval. ``role`` is what
    makes the other method matter.
    """

    step: int
    against: str
    role: str
    ratio: float
    ci95: tuple[float, float] | None
    word: Word

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        return {**asdict(self), "ci95": None if self.ci95 is None else list(self.ci95)}


def verdicts(
    label: str, methods: dict[str, Method], measured: dict[str, Measurement], steps: list[int]
) -> Iterator[Verdict]:
    """The rule ``label`` against its controls, the baseline that is best at that step, and Adam, at each of ``steps``.

    The best baseline is the one, with or without teleports, whose losses on these tasks have the lowest geometric mean.
    """
    for step in steps:
        for other, role in _others(label, methods, measured, step):
            losses = [log10(measured[name].losses[step]) for name in (label, other)]
            difference = losses[0] - losses[1]
            interval = student(difference)
            ends = None if interval is None else (_power(interval[0]), _power(interval[1]))
            yield Verdict(step, other, role, _power(float(difference.mean())), ends, _word(interval))


def _others(
    label: str, methods: dict[str, Method], measured: dict[str, Measurement], step: int
) -> Iterator[tuple[str, str]]:
    twins = dict(zip((f"{label}/identity", f"{label}/random"), TWINS, strict=True))
    for name, method in methods.items():
        if method.kind == "control":
            yield name, twins.get(name, "control")
    plain = [name for name, method in methods.items() if method.kind in ("baseline", "teleport-baseline")]
    best = min(plain, key=lambda name: float(log10(measured[name].losses[step]).mean()))
    yield best, "best baseline"
    if best != "adam":
        yield "adam", "baseline"


def _word(interval: tuple[float, float] | None) -> Word:
    if interval is None:
        return "unknown"
    return "ahead" if interval[1] < 0 else "behind" if interval[0] > 0 else "level"


def _power(exponent: float) -> float:
    return float(10 ** max(-LARGEST, min(LARGEST, exponent)))
