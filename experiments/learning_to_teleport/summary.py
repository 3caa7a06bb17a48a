"""What learning_to_teleport.py reports of losses: quantiles at some steps, and comparisons with intervals."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from experiments.lab.intervals import compare_over_seeds

SHOWN = (1, 5, 10, 20, 30, 50, 100, 300, 1000)


def summary(losses: torch.Tensor) -> dict[str, Any]:
    """Of losses ``(seeds, steps + 1, tasks)``: median, mean and 90 % quantile over seeds and tasks at the shown
    steps, the mean of each seed, and the largest ratio to the initial loss after step 10."""
    shown = [step for step in SHOWN if step < losses.shape[1]]
    flat = {step: losses[:, step].flatten() for step in shown}
    return {
        "median": {step: float(x.median()) for step, x in flat.items()},
        "mean": {step: float(x.mean()) for step, x in flat.items()},
        "q90": {step: float(x.quantile(0.9)) for step, x in flat.items()},
        "mean_by_seed": {step: losses[:, step].mean(1).tolist() for step in shown},
        "largest_ratio_to_initial_after_10": float((losses[:, 10:] / losses[:, :1]).max()),
    }


def comparisons(
    losses: dict[str, torch.Tensor], settings: Sequence[str], families: Sequence[str], compared: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """LSTM(update, tele) and LSTM(lr, tele) of each of the ``settings`` against everything else that does not belong to
    another of ``families``, at the ``compared`` steps."""
    for setting in settings:
        for rule in ("LSTMUpdateTele", "LSTMLrTele"):
            own = f"{setting}/{rule}"
            for other in losses if own in losses else ():
                if other == own or (other.startswith(tuple(families)) and not other.startswith(f"{setting}/")):
                    continue
                if rule == "LSTMLrTele" and not (other.startswith(own) or "/" not in other):
                    continue
                last = min(losses[own].shape[1], losses[other].shape[1])
                for step in (s for s in compared if s < last):
                    same = other.startswith(f"{own}/")
                    pair = losses[own][:, step], losses[other][:, step]
                    yield {"a": own, "b": other, "step": step, **compare_over_seeds(*pair, same)}
