"""The figure of one family of held_out.py: a panel per member with all methods."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.held_out.members import Setting
from experiments.held_out.statistics import Curves

LEARNED = {"no teleport": "#1f77b4", "random teleport": "#2ca02c", "rule": "#d62728"}
OTHERS = {
    "hand-written teleporter": "black",
    "last layer solved": "#dbdb8d",
    "Adam": "#9467bd",
    "Adam, tuned gauge": "#ff7f0e",
    "Adam, principal axes": "#e6b800",
    "Adam, gradient-norm teleport": "#e377c2",
    "GD, gradient-norm teleport": "#c2a5cf",
    "momentum, gradient-norm teleport": "#80cdc1",
    "GD": "#999999",
    "GD after a warm-up step": "#5b5b9d",
    "momentum": "#c49c94",
    "Adam, balanced gauge": "#aec7e8",
    "Muon": "#17becf",
    "Shampoo": "#8c564b",
    "L-BFGS": "#bcbd22",
    "Levenberg-Marquardt": "#006400",
    "scaled GD": "#000080",
    "LSTM(update, tele) as published": "#ff9896",
}
LEAST, TOP, PANELS = 1e-30, 10, 4


def plot(setting: Setting, members: dict[str, Curves]) -> Figure:
    """Medians against the step, over tasks and meta-seeds; bands from 10 % to 90 % for what is learned. Dots are the
    ends of longer runs; what lies above ten times the largest start is not shown."""
    columns, rows = min(len(members), PANELS), -(-len(members) // PANELS)
    figure = Figure(figsize=(4.6 * columns, 4.2 * rows + 1), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)
    for empty in panels[len(members) :]:
        empty.remove()
    for axes, (name, curves) in zip(panels, members.items(), strict=False):
        for method, colour in (OTHERS | LEARNED).items():
            if method in curves:
                _line(axes, curves, method, colour)
        axes.axvline(setting.horizon, color="black", linewidth=0.6, linestyle=":")
        axes.set(yscale="log", xlabel="step", title=name, xscale="log")
        axes.set_ylim(top=min(axes.get_ylim()[1], TOP * float(curves["rule"][0].values[0].max())))
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel("error" if setting.stochastic else "loss")
    entries = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", fontsize=8, ncols=6)
    figure.suptitle(f"{setting.title} (dotted: the horizon)", fontsize=11)
    return figure


def _line(axes: Axes, curves: Curves, method: str, colour: str) -> None:
    steps, learned = curves[method][0].steps.numpy(), method in LEARNED
    low, middle, high = _quantiles([run.values for run in curves[method]]).numpy()
    style = {"linewidth": 2.0 if learned else 1.2, "zorder": 2 + learned, "linestyle": "-"}
    if learned and method != "rule":
        style["linestyle"] = "--"
    axes.plot(steps[1:], middle[1:], color=colour, label=method, **style)  # type: ignore[arg-type]
    if learned:
        axes.fill_between(steps[1:], low[1:], high[1:], color=colour, alpha=0.15, linewidth=0)
    for multiple in (3, 10):
        if longer := curves.get(f"{method}, x{multiple}"):
            end = _quantiles([run.values[-1:] for run in longer])[1]
            axes.plot(int(longer[0].steps[-1]), float(end), ".", color=colour)


def _quantiles(values: list[Tensor]) -> Tensor:
    """10 %, 50 % and 90 % over tasks and meta-seeds of ``(points, tasks)`` each, ``(3, points)``."""
    together = torch.cat(values, 1).clamp(min=LEAST)
    return together.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=together.dtype), dim=1)
