"""95 % intervals: Student's over seeds and over seeds and tasks, Fisher's of a correlation, the bootstrap's."""

from collections.abc import Callable, Sequence
from math import atanh, isfinite, nan, sqrt, tanh
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from meta_teleport.evaluation.statistics import RESAMPLES, bootstrap, log10

NORMAL_95 = float(stats.norm.ppf(0.975))
ENDS = (0.025, 0.975)

Interval = tuple[float, float, float]
"""Mean, low and high end."""
Row = dict[str, Any]


def student(values: Sequence[float] | Tensor) -> Interval:
    """The mean and the interval of Student's t, which a bootstrap of a few values would make too narrow; no ends from
    a single value."""
    x = torch.as_tensor(values, dtype=torch.float64)
    mean, half = float(x.mean()), half_width([x]) if len(x) > 1 else nan
    return mean, mean - half, mean + half


def difference(row: Row, plain: Row, key: str, when: str = "last") -> Interval:
    """The last (or early) loss or accuracy of a row minus that of the plain optimizer, paired by seed."""
    return student([a - b for a, b in zip(row[when][key], plain[when][key], strict=True)])


def paired(a: Sequence[float], b: Sequence[float], few: bool = False) -> dict[str, float | int | None]:
    """The mean of ``a - b`` with its interval, and on how many seeds both are finite, which it is over.

    By the bootstrap, or, for ``few`` seeds, by Student's t. Without two such seeds all three are None.
    """
    pairs = [x - y for x, y in zip(a, b, strict=True) if isfinite(x) and isfinite(y)]
    if len(pairs) < 2:
        return {"mean": None, "low": None, "high": None, "seeds": len(pairs)}
    values = torch.tensor(pairs, dtype=torch.float64)
    low, high = student(values)[1:] if few else bootstrap(values, torch.Generator().manual_seed(0))
    return {"mean": float(values.mean()), "low": low, "high": high, "seeds": len(pairs)}


def compare_over_seeds(a: Tensor, b: Tensor, same_seeds: bool = False) -> dict[str, object]:
    """Losses ``a`` ``(seeds, tasks)`` against ``b`` ``(seeds, tasks)``, or ``(1, tasks)`` for a method without seeds.

    Returns the mean of ``log10(a / b)`` over seeds and tasks, its 95 % interval (``same_seeds``: row i of b belongs to
    row i of a, as for a control of the same rule), and the part of tasks and pairs of seeds on which a has the lower
    loss.
    """
    x, y = log10(a), log10(b)
    by_seed = [(x - y).mean(1)] if same_seeds else [x.mean(1), y.mean(1)]
    middle = float(x.mean() - y.mean())
    half = half_width([*by_seed, x.mean(0) - y.mean(0)])
    first, second = (a, b) if same_seeds else (a[:, None], b[None])
    wins = (first < second).double() + 0.5 * (first == second).double()
    return {"log10_ratio": middle, "ci95": [middle - half, middle + half], "win_rate": float(wins.mean())}


def half_width(samples: list[Tensor]) -> float:
    """Of the t interval of a mean to which each sample ``(n,)`` adds the variance of its own mean ``v = s^2 / n``, with
    Satterthwaite's degrees of freedom ``(sum v)^2 / sum(v^2 / (n - 1))``. A sample of one adds nothing.

    Means over seeds and means over tasks both contain what is of seed and task together: it counts twice, so that the
    interval is too wide by that rather than too narrow.
    """
    parts = [(float(sample.var()) / len(sample), len(sample) - 1) for sample in samples if len(sample) > 1]
    total = sum(v for v, _ in parts)
    if total == 0:
        return 0.0
    return float(stats.t.ppf(0.975, total**2 / sum(v**2 / free for v, free in parts))) * total**0.5


def fisher(r: float, count: int, given: int = 0) -> list[float]:
    """``tanh(artanh r +- 1.96 / sqrt(count - 3 - given))``: of Pearson's r of ``count`` pairs, or of a partial one with
    ``given`` other quantities regressed out."""
    width = NORMAL_95 / sqrt(count - 3 - given)
    return [tanh(atanh(r) - width), tanh(atanh(r) + width)]


def resampled(statistic: Callable[..., np.ndarray], columns: Sequence[np.ndarray]) -> list[float]:
    """The percentile bootstrap interval of ``statistic(*columns)``, columns ``(n,)`` that are drawn together. Resamples
    that have no such statistic, as those of one value have no correlation, are left out."""
    count = len(columns[0])
    drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = statistic(*(column[drawn] for column in columns))
    return [float(end) for end in np.nanquantile(found, ENDS)]


def median_interval(values: Tensor, generator: torch.Generator) -> list[float]:
    """The percentile bootstrap interval of the median of ``values`` ``(problems,)``."""
    drawn = values[torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)].quantile(0.5, 1)
    return drawn.quantile(torch.tensor(ENDS, dtype=drawn.dtype)).tolist()
