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
    tasks, rows = _weights(x.shape[1], generator), _weights(len(x), generator)
    others = rows if same_seeds else _weights(len(y), generator)
    means = ((rows @ x - others @ y) * tasks).sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    first, second = (a, b) if same_seeds else (a[:, None], b[None])
    wins = (first < second).double() + 0.5 * (first == second).double()
    return {
        "log10_ratio": float(x.mean() - y.mean()),
        "ci95": [low, high],
        "win_rate": float(wins.mean()),
    }


def _weights(count: int, generator: torch.Generator) -> Tensor:
    """How often each of ``count`` things is drawn, as a fraction, in every resample: ``(RESAMPLES, count)``."""
    drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
    return torch.zeros(RESAMPLES, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.full((RESAMPLES, count), 1 / count, dtype=torch.float64)
    )
