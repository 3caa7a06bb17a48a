"""The figure of learning_to_teleport: loss against step for every rule, its controls and the baselines."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

PANELS = ("published", "better")
LABELS = {"LSTMUpdate": "LSTM(update)", "LSTMUpdateTele": "LSTM(update, tele)", "LSTMLrTele": "LSTM(lr, tele)"}
COLOURS = {"LSTMUpdate": "#1f77b4", "LSTMUpdateTele": "#d62728", "LSTMLrTele": "#2ca02c"}
BASELINES = {"gd": "#999999", "gd-warmup": "#555555", "adam": "#9467bd", "lbfgs": "#8c564b", "adam+ascent": "#e377c2"}
DASHES = {"identity": "--", "random": ":"}
LOWEST, HIGHEST = 1e-1, 1e6


def plot_curves(losses: dict[str, Tensor], folder: Path, horizon: int) -> None:
    """Writes ``learning_to_teleport.png`` and ``.pdf``: one panel per setting, medians over meta-seeds and tasks with
    bands from 10 % to 90 %, on logarithmic axes; the trained horizon is a vertical line. ``losses`` are
    ``(seeds, steps + 1, tasks)`` by name."""
    panels = [name for name in PANELS if any(key.startswith(f"{name}/") for key in losses)]
    figure = Figure(figsize=(6.5 * len(panels), 5.5), layout="constrained", dpi=110)
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for name, colour in BASELINES.items():
            if name in losses:
                _line(axes, losses[name], name, color=colour, linewidth=1.2)
        for key, values in losses.items():
            setting, _, method = key.partition("/")
            rule, _, control = method.partition("/")
            if setting == panel:
                label = LABELS[rule] + (f", {control} elements" if control else "")
                line = DASHES.get(control, "-")
                _line(axes, values, label, not control, color=COLOURS[rule], linestyle=line, linewidth=2)
        axes.axvline(horizon, color="black", linewidth=0.8)
        axes.annotate("trained horizon", (horizon, HIGHEST), (-74, -12), textcoords="offset points", fontsize=8)
        axes.set(xscale="log", yscale="log", xlabel="step", title=f"{panel} settings", ylim=(LOWEST, HIGHEST))
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=8, ncols=4)
    figure.axes[0].set_ylabel("loss, median over tasks and meta-seeds")
    for suffix in ("png", "pdf"):
        figure.savefig(folder / f"learning_to_teleport.{suffix}")


def _line(axes: Axes, losses: Tensor, label: str, band: bool = False, **style: Any) -> None:
    flat = losses.transpose(0, 1).flatten(1)
    low, median, high = (flat.quantile(q, dim=1)[1:].numpy() for q in (0.1, 0.5, 0.9))
    steps = range(1, len(median) + 1)
    axes.plot(steps, median, label=label, **style)
    if band:
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
