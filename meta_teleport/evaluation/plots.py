"""Evaluations as figures."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meta_teleport.evaluation.evaluation import Evaluation
from meta_teleport.evaluation.measurement import Measurement
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
CROSS: dict[str, Any] = {"markersize": 9, "markeredgewidth": 2.5, "clip_on": False, "zorder": 4}


def line_style(name: str, kind: Kind) -> dict[str, Any]:
    """How a method is drawn: colours by optimizer, dashes by what is added to it, the rule thick and red."""
    if kind == "learned":
        return {"color": LEARNED, "linestyle": "-", "linewidth": 2.6, "zorder": 3}
    optimizer, _, added = name.partition("+")
    dashes = {"ascent": ":", "random": "-."}.get(added, "--" if kind == "control" else "-")
    return {"color": COLOURS[optimizer.rpartition("/")[2]], "linestyle": dashes, "linewidth": 1.5, "zorder": 2}


def plot_evaluation(evaluation: Evaluation, path: Path, horizon: int) -> None:
    """Writes the :func:`figure` of an evaluation as a PNG."""
    with matplotlib.rc_context({"text.usetex": False}):  # or a matplotlibrc in the working directory would run LaTeX
        figure(evaluation, horizon).savefig(path)


def figure(evaluation: Evaluation, horizon: int) -> Figure:
    """Loss against step and against seconds.

    Lines are medians over tasks, bands 10 % to 90 % quantiles (for the rule and two baselines), a vertical line marks
    the trained ``horizon``. Scales are logarithmic, within the :func:`limits`; what is below is drawn at their end, and
    a note says so. A method whose median stays above them ends in a cross, and the legend says at which step.
    """
    bottom, top = limits(evaluation)
    drawing = Figure(figsize=(14, 6), layout="constrained", dpi=120)
    left, right = drawing.subplots(1, 2, sharey=True)
    for name, method in evaluation.methods.items():
        measured, style = evaluation.measurements[name], line_style(name, method.kind)
        levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        low, median, high = measured.losses.quantile(levels, dim=1).clamp(min=bottom).numpy()
        end = ending(measured, top)
        for axes, x in ((left, np.arange(len(median))), (right, measured.seconds.numpy())):
            drawn = slice(0 if axes is left else 1, end)
            axes.plot(x[drawn], median[drawn], label=f"{name}{fate(measured, end)}", **style)
            if method.kind == "learned" or name in BANDED:
                axes.fill_between(x[drawn], low[drawn], high[drawn], color=style["color"], alpha=0.15, linewidth=0)
            if end is not None:
                at = max(end - 1, drawn.start)
                axes.plot(x[at], min(median[at], top), "x", color=style["color"], **CROSS)
    _scale(left, right, evaluation, bottom, top)
    _annotate(left, right, evaluation, horizon)
    if _any_below(evaluation, bottom):
        note = f"losses below {bottom:.0e} (rounding in {evaluation.dtype}, exact zeros) are drawn there"
        drawing.supxlabel(note, fontsize=9)
    title = f"{evaluation.family}: {evaluation.tasks} held-out tasks (seed {evaluation.seed}, {evaluation.dtype})"
    drawing.suptitle(title, fontsize=11)
    drawing.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return drawing


def limits(evaluation: Evaluation) -> tuple[float, float]:
    """The least and the greatest loss that a figure shows.

    The least is half the smallest median, but not below ``eps^2`` times the initial loss, which is what rounding of the
    outputs leaves of a squared error; the greatest is ten times the initial 90 % quantile.
    """
    measured = evaluation.measurements.values()
    medians = torch.cat([m.losses.quantile(0.5, dim=1) for m in measured])
    initial = float(max(m.losses[0].quantile(0.9) for m in measured))
    positive = medians[medians > 0]
    smallest = float(positive.min()) / 2 if len(positive) else 1.0
    bottom = max(smallest, torch.finfo(getattr(torch, evaluation.dtype)).eps ** 2 * initial, LOWEST)
    return bottom, HEADROOM * max(initial, bottom)


def ending(measured: Measurement, top: float) -> int | None:
    """The first step from which on the median of the losses is above ``top`` for good; None if it is not at the end."""
    above = measured.losses.quantile(0.5, dim=1) > top
    if not bool(above[-1]):
        return None
    within = (~above).nonzero()
    return int(within[-1]) + 1 if len(within) else 0


def fate(measured: Measurement, end: int | None) -> str:
    """What the legend adds to a name: where its line ends, or how many tasks failed."""
    tasks = len(measured.alive)
    if end is not None:
        return f" ({'diverged at' if 2 * measured.failed > tasks else 'above from'} step {end})"
    return f" ({measured.failed} of {tasks} failed)" if measured.failed else ""


def _any_below(evaluation: Evaluation, bottom: float) -> bool:
    return any(bool((m.losses.quantile(0.5, dim=1) < bottom).any()) for m in evaluation.measurements.values())


def _scale(left: Axes, right: Axes, evaluation: Evaluation, bottom: float, top: float) -> None:
    left.set_xscale("symlog", linthresh=1, linscale=0.3)
    left.set_xlim(0, evaluation.steps)
    right.set_xscale("log")
    left.set_yscale("log")
    left.set_ylim(bottom / 2, top)


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
