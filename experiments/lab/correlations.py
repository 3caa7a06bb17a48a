"""Pearson correlations over seeds, plain and partial, with 95 % intervals of two kinds.

    r     of a measure m and a target y                          Fisher, n seeds
    r.z   of what is left of both when z is regressed out        Fisher, n - 1 seeds

and percentile bootstrap intervals over seeds, which do not believe in normal distributions.
"""

from typing import Any

import numpy as np
from torch import Tensor

from experiments.lab.intervals import fisher, resampled
from meta_teleport.errors import UserError

FEWEST_SEEDS = 5
LOSS = "loss"


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r along the last axis."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def partial(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The correlation of x and y given z."""
    xy, xz, yz = pearson(x, y), pearson(x, z), pearson(y, z)
    return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray | None = None) -> dict[str, Any]:
    """r (given z: partial) with its Fisher and its bootstrap interval."""
    columns = (x, y) if given is None else (x, y, given)
    statistic = pearson if given is None else partial
    r = float(statistic(*columns))
    return {"r": r, "ci95": fisher(r, len(x), len(columns) - 2), "bootstrap_ci95": resampled(statistic, columns)}


def correlations(train: Tensor, test: Tensor, batches: dict[str, Tensor]) -> dict[str, Any]:
    """Every measure against the test loss, the gap, and the test loss given the training loss.

    ``train`` and ``test`` are losses ``(seeds,)``; ``batches`` hold the measures ``(batches, seeds)``, among them the
    loss on the same images, from which those called sharpness are told apart: ``... - loss``. Seeds of which something
    is not finite are left out, and counted. A measure's *reliability* is the correlation over seeds that two runs of it
    on as many other batches would have: Spearman and Brown's formula on the even and the odd ones.

    Raises ``UserError`` where fewer than five seeds remain.
    """
    rows = {name: values.double().numpy() for name, values in batches.items()}
    for name in [name for name in rows if name.startswith("sharpness")]:
        rows[f"{name}, less the loss"] = rows[name] - rows[LOSS][: len(rows[name])]
    whole = {"train": train.double().numpy(), "test": test.double().numpy()}
    kept = np.isfinite(np.concatenate([*rows.values(), *(v[None] for v in whole.values())])).all(0)
    if kept.sum() < FEWEST_SEEDS:
        raise UserError(f"correlations over {kept.sum()} seeds say nothing: give --seeds {FEWEST_SEEDS} or more")
    y, z = whole["test"][kept], whole["train"][kept]
    found = {"training loss": {**_against(z, y, y - z), "values": z.tolist()}}
    for name, values in rows.items():
        if name != LOSS:
            x = values[:, kept]
            mean = x.mean(0)
            found[name] = {
                **_against(mean, y, y - z),
                "test_given_train": correlation(mean, y, z),
                "reliability": _reliability(x),
                "values": mean.tolist(),
            }
    return {"left_out": int((~kept).sum()), "test_loss": y.tolist(), "training_loss": z.tolist(), "measures": found}


def _against(x: np.ndarray, test: np.ndarray, gap: np.ndarray) -> dict[str, Any]:
    return {"test": correlation(x, test), "gap": correlation(x, gap)}


def _reliability(x: np.ndarray) -> float:
    r = float(pearson(x[::2].mean(0), x[1::2].mean(0)))
    return 2 * r / (1 + r)
