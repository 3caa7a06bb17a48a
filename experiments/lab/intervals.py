"""Comparisons across meta-seeds and held-out tasks, with t intervals over both."""

from scipy.stats import t as student
from torch import Tensor

from meta_teleport.evaluation.statistics import log10


def compare_over_seeds(a: Tensor, b: Tensor, same_seeds: bool = False) -> dict[str, object]:
    """Losses ``a`` ``(seeds, tasks)`` against ``b`` ``(seeds, tasks)``, or ``(1, tasks)`` for a method without seeds.

    Returns the mean of ``log10(a / b)`` over seeds and tasks, its 95 % interval (``same_seeds``: row i of b belongs to
    row i of a, as for a control of the same rule), and the part of tasks and pairs of seeds on which a has the lower
    loss.
    """
    x, y = log10(a), log10(b)
    by_seed = [(x - y).mean(1)] if same_seeds else [x.mean(1), y.mean(1)]
    middle = float(x.mean() - y.mean())
    half = _half_width([*by_seed, x.mean(0) - y.mean(0)])
    first, second = (a, b) if same_seeds else (a[:, None], b[None])
    wins = (first < second).double() + 0.5 * (first == second).double()
    return {"log10_ratio": middle, "ci95": [middle - half, middle + half], "win_rate": float(wins.mean())}


def _half_width(samples: list[Tensor]) -> float:
    """Of the t interval of a mean to which each sample ``(n,)`` adds the variance of its own mean ``v = s^2 / n``, with
    Satterthwaite's degrees of freedom ``(sum v)^2 / sum(v^2 / (n - 1))``. A sample of one adds nothing.

    Means over seeds and means over tasks both contain what is of seed and task together: it counts twice, so that the
    interval is too wide by that rather than too narrow.
    """
    parts = [(float(sample.var()) / len(sample), len(sample) - 1) for sample in samples if len(sample) > 1]
    total = sum(v for v, _ in parts)
    if total == 0:
        return 0.0
    return float(student.ppf(0.975, total**2 / sum(v**2 / free for v, free in parts))) * total**0.5
