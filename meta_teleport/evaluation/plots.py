"""Evaluations as figures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meta_teleport.evaluation.evaluation import Evaluation
from meta_teleport.evaluation.methods import Kind

BANDED = ("adam", "gd-warmup")
LOWEST = 1e-30
HEADROOM = 10.0
COLOURS = {
    "gd": "#1f77b4",
    "gd-warmup": "#17becf",
    "momentum": "#2ca02c",
    "adam": "#9467bd",
    "lbfgs": "#8c564b",
    "identity": "#ff7f0e",
    "random": "#e377c2",
    "whitening": "#111111",
    "last-layer-solve": "#7f7f7f",
}
LEARNED = "#d62728"


def line_style(name: str, kind: Kind) -> dict[str, Any]:
    """How a method is drawn: colours by optimizer, dashes by what is added to it, the rule thick and red."""
    if kind == "learned":
        return {"color": LEARNED, "linestyle": "-", "linewidth": 2.6, "zorder": 3}
    optimizer, _, added = name.partition("+")
    dashes = {"ascent": ":", "random": "-."}.get(added, "--" if kind == "control" else "-")
    return {"color": COLOURS[optimizer.rpartition("/")[2]], "linestyle": dashes, "linewidth": 1.5, "zorder": 2}


def plot_evaluation(evaluation: Evaluation, path: Path, horizon: int) -> None:
    """Writes a PNG: loss against step and against seconds.

    Lines are medians over tasks, bands 10 % to 90 % quantiles (for the rule and two baselines), a vertical line marks
    the trained ``horizon``. Scales are logarithmic; where a loss is exactly zero, linear near zero.
    """
    figure = Figure(figsize=(14, 6), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, sharey=True)
    for name, method in evaluation.methods.items():
        measured, style = evaluation.measurements[name], line_style(name, method.kind)
        levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        low, median, high = measured.losses.quantile(levels, dim=1).numpy()
        for axes, x in ((left, np.arange(len(median))), (right, measured.seconds.numpy())):
            first = 0 if axes is left else 1
            axes.plot(x[first:], median[first:], label=name, **style)
            if method.kind == "learned" or name in BANDED:
                axes.fill_between(x[first:], low[first:], high[first:], color=style["color"], alpha=0.15, linewidth=0)
    _scale(left, right, evaluation)
    _annotate(left, right, evaluation, horizon)
    title = f"{evaluation.family}: {evaluation.tasks} held-out tasks, against steps and against time"
    figure.suptitle(title, fontsize=11)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path)


def _scale(left: Axes, right: Axes, evaluation: Evaluation) -> None:
    left.set_xscale("symlog", linthresh=1, linscale=0.3)
    left.set_xlim(0, evaluation.steps)
    right.set_xscale("log")
    curves = torch.cat([m.losses.quantile(0.5, dim=1) for m in evaluation.measurements.values()])
    positive = curves[curves > 0]
    smallest = float(positive.min()) if len(positive) else LOWEST
    if bool((curves == 0).any()):
        left.set_yscale("symlog", linthresh=max(smallest, LOWEST), linscale=0.5)
        left.set_ylim(bottom=0)
    else:
        left.set_yscale("log")
        left.set_ylim(bottom=smallest / 2)
    initial = float(max(m.losses[0].quantile(0.9) for m in evaluation.measurements.values()))
    left.set_ylim(top=HEADROOM * max(initial, smallest))


def _annotate(left: Axes, right: Axes, evaluation: Evaluation, horizon: int) -> None:
    if horizon <= evaluation.steps:
        left.axvline(horizon, color="black", linewidth=1, linestyle=(0, (1, 3)))
        place: dict[str, Any] = {"transform": left.get_xaxis_transform(), "ha": "center", "fontsize": 9}
        left.text(horizon, 1.01, f"trained horizon: {horizon}", **place)
    left.set_xlabel("step (one gradient evaluation each)")
    right.set_xlabel(f"seconds for {evaluation.tasks} tasks side by side")
    left.set_ylabel("loss: median over tasks (bands: 10 % to 90 %)")
    for axes in (left, right):
        axes.grid(True, which="major", alpha=0.25)
