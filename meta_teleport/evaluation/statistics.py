"""Numbers about losses: quantile curves, paired comparisons with their intervals, speed-up.

Losses are ``(steps + 1, tasks)`` in float64, as :mod:`measurement` gives them. Ratios are taken of
losses not below ``FLOOR``, so that exact zeros are finite.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

FLOOR = 1e-30
RESAMPLES = 4000


@dataclass(frozen=True)
class Comparison:
    """Method ``a`` against method ``b`` after ``step`` steps, paired by task.

    ``log10_ratio`` is the mean over tasks of ``log10(loss of a / loss of b)`` (negative: a is better), ``ci95`` its
    95 % percentile bootstrap interval over tasks, ``win_rate`` the part of the tasks on which a has the lower loss,
    ties counted half.
    """

    a: str
    b: str
    step: int
    log10_ratio: float
    ci95: tuple[float, float]
    win_rate: float

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain JSON values."""
        return {**asdict(self), "ci95": list(self.ci95)}


def log10(losses: Tensor) -> Tensor:
    """``log10(max(loss, 1e-30))``."""
    return losses.clamp(min=FLOOR).log10()


def curves(losses: Tensor) -> dict[str, list[float]]:
    """Median, mean and 10 % and 90 % quantiles over tasks at every step."""
    low, median, high = losses.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=losses.dtype), dim=1)
    return {"median": median.tolist(), "mean": losses.mean(1).tolist(), "q10": low.tolist(), "q90": high.tolist()}


def bootstrap(values: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of ``values`` ``(tasks,)``, from 4000 resamples."""
    drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    low, high = values[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype))
    return float(low), float(high)


def student(values: Tensor) -> tuple[float, float] | None:
    """The 95 % interval of Student's t of the mean of ``values`` ``(n,)``, float64; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean, half = float(values.mean()), float(stdtrit(n - 1, 0.975)) * float(values.std()) / n**0.5
    return mean - half, mean + half


def compare(a: str, b: str, losses: dict[str, Tensor], step: int, generator: torch.Generator) -> Comparison:
    """Methods ``a`` and ``b`` of ``losses`` after ``step`` steps; ``generator`` draws the resamples."""
    first, second = losses[a][step], losses[b][step]
    difference = log10(first) - log10(second)
    wins = (first < second).double() + 0.5 * (first == second).double()
    return Comparison(a, b, step, float(difference.mean()), bootstrap(difference, generator), float(wins.mean()))


def speed_up(losses: Tensor, reference: Tensor, horizon: int) -> dict[str, float | None]:
    """How many times more steps the reference needs for the median loss that a method has at ``horizon``.

    ``speedup_over_adam`` is the first step at which the reference's median is as low, divided by ``horizon``. Where
    it never is, this is None and ``speedup_over_adam_at_least`` is the last step divided by ``horizon``.
    """
    target = losses[horizon].median()
    reached = (reference.median(1).values <= target).nonzero()
    if len(reached):
        return {"speedup_over_adam": int(reached[0]) / horizon, "speedup_over_adam_at_least": None}
    return {"speedup_over_adam": None, "speedup_over_adam_at_least": (len(reference) - 1) / horizon}
