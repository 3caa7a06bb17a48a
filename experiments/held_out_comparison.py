"""Comparisons across meta-seeds and held-out tasks, with a bootstrap that resamples both."""

import torch
from torch import Tensor

from meta_teleport.statistics import log10

RESAMPLES = 4000


def compare_over_seeds(a: Tensor, b: Tensor, generator: torch.Generator, same_seeds: bool = False) -> dict[str, object]:
    """Losses ``a`` ``(seeds, tasks)`` against ``b`` ``(seeds, tasks)``, or ``(1, tasks)`` for a method without seeds.

    Returns the mean of ``log10(a / b)`` over seeds and tasks, its 95 % percentile bootstrap interval over seeds and
    tasks (``same_seeds``: row i of b belongs to row i of a, as for a control of the same rule), and the part of tasks
    and pairs of seeds on which a has the lower loss.
    """
    x, y = log10(a), log10(b)
    tasks = torch.randint(x.shape[1], (RESAMPLES, x.shape[1]), generator=generator)
    rows = torch.randint(len(x), (RESAMPLES, len(x)), generator=generator)
    others = rows if same_seeds else torch.randint(len(y), (RESAMPLES, len(y)), generator=generator)
    means = [float(x[r][:, t].mean() - y[o][:, t].mean()) for r, o, t in zip(rows, others, tasks, strict=True)]
    low, high = torch.tensor(means).quantile(torch.tensor([0.025, 0.975])).tolist()
    first, second = (a, b) if same_seeds else (a[:, None], b[None])
    wins = (first < second).double() + 0.5 * (first == second).double()
    return {
        "log10_ratio": float(x.mean() - y.mean()),
        "ci95": [low, high],
        "win_rate": float(wins.mean()),
    }
