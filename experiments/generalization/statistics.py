"""Paired differences of generalization.py: every variant against no teleport, seed by seed."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.generalization.probes import MEASURES
from experiments.generalization.teleports import PLAIN
from experiments.lab.intervals import paired
from meta_teleport.evaluation.statistics import bootstrap


def compared_branches(branches: dict[str, Any], epochs: Sequence[int]) -> list[dict[str, Any]]:
    """Per variant: what the teleports moved (each measure right after them, and at the end), and test loss, gap and
    accuracy afterwards, at ``epochs``, and the test loss as ``late`` has it. The row without teleport holds means in
    place of differences."""
    rows, first = branches["rows"], branches["from"]
    plain = rows[0]
    return [
        {
            "variant": row["variant"],
            "moved": {
                moment: {name: _against(row, plain, lambda r: r["probes"][moment][name]) for name in MEASURES}  # noqa: B023
                for moment in ("after", "end")
            },
            "test": {str(epoch): _against(row, plain, lambda r: r["test"][epoch - first]) for epoch in epochs},  # noqa: B023
            "late": _against(row, plain, late),
            "gap": {str(epoch): _against(row, plain, lambda r: gap(r, epoch - first)) for epoch in epochs},  # noqa: B023
            "accuracy": _against(row, plain, lambda r: r["accuracy"]),
        }
        for row in rows
    ]


def late(row: dict[str, Any]) -> list[float]:
    """Mean test loss over the second half of the epochs after the teleports, per seed: single epochs fluctuate."""
    half = row["test"][1 + (len(row["test"]) - 1) // 2 :]
    return [sum(losses) / len(half) for losses in zip(*half, strict=True)]


def gap(row: dict[str, Any], epoch: int) -> list[float]:
    """Test loss minus the mean training loss of that epoch, per seed."""
    return [a - b for a, b in zip(row["test"][epoch], row["train"][epoch], strict=True)]


def _against(row: dict[str, Any], plain: dict[str, Any], pick: Any) -> dict[str, Any]:
    own = pick(row)
    return paired(own, [0.0] * len(own) if row["variant"] == PLAIN else pick(plain))


def compared_frequencies(frequency: dict[str, Any]) -> list[dict[str, Any]]:
    """Per variant and frequency: last test loss and gap against no teleport."""
    plain = frequency["rows"][0]
    return [
        {
            "variant": row["variant"],
            "frequency": row["frequency"],
            **{key: paired(row[key], plain[key], few=True) for key in ("test", "gap")},
        }
        for row in frequency["rows"][1:]
    ]


def band(values: Tensor) -> tuple[list[float], list[float], list[float]]:
    """Mean and 95 % bootstrap interval over seeds at every epoch, of ``(epochs, seeds)``; seeds with something that is
    not finite are left out."""
    kept = values[:, values.isfinite().all(0)].double()
    if kept.shape[1] < 2:
        nothing = [math.nan] * len(values)
        return nothing, nothing, nothing
    limits = [bootstrap(row, torch.Generator().manual_seed(0)) for row in kept]
    return kept.mean(1).tolist(), [low for low, _ in limits], [high for _, high in limits]


def strict(content: Any) -> Any:
    """The content with six digits of every number, and null for what JSON has no number for."""
    if isinstance(content, dict):
        return {key: strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [strict(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    return content
