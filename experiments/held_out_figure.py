"""The figure of one family of held_out.py: a panel per size with all methods."""

import torch
from held_out_members import Setting
from held_out_statistics import Curves
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LEARNED = {"rule": "#d62728", "no teleport": "#1f77b4", "random teleport": "#2ca02c"}
OTHERS = {
    "hand-written teleporter": "black",
    "last layer solved": "#bbbbbb",
    "Adam": "#9467bd",
    "Adam, tuned gauge": "#ff7f0e",
    "Adam, principal axes": "#e6b800",
    "Adam, gradient-norm teleport": "#e377c2",
    "GD, gradient-norm teleport": "#c2a5cf",
    "momentum, gradient-norm teleport": "#80cdc1",
    "GD": "#999999",
    "Muon": "#17becf",
    "Shampoo": "#8c564b",
    "L-BFGS": "#bcbd22",
    "Levenberg-Marquardt": "#006400",
    "scaled GD": "#555555",
    "LSTM(update, tele) as published": "#ff9896",
}
LEAST = 1e-30


def plot(setting: Setting, members: dict[str, Curves]) -> Figure:
    """Medians against the step, over tasks and meta-seeds; bands from 10 % to 90 % for what is learned. Dots are the
    ends of longer runs with settings of their own."""
    count = min(len(members), 4)
    figure = Figure(figsize=(4.6 * count, 5.2), layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    for axes, (name, curves) in zip(panels, members.items(), strict=False):
        for method, colour in (OTHERS | LEARNED).items():
            if method in curves:
                _line(axes, curves, method, colour)
        axes.axvline(setting.horizon, color="black", linewidth=0.6, linestyle=":")
        axes.set(yscale="log", xlabel="step", title=name, xscale="linear" if setting.stochastic else "log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("error" if setting.stochastic else "loss")
    entries = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", fontsize=8, ncols=6)
    figure.suptitle(f"{setting.title} (dotted: the horizon)", fontsize=11)
    return figure


def _line(axes: Axes, curves: Curves, method: str, colour: str) -> None:
    runs = curves[method]
    values = torch.cat([run.values for run in runs], 1).clamp(min=LEAST)
    low, middle, high = values.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype), dim=1).numpy()
    steps, learned = runs[0].steps.numpy(), method in LEARNED
    axes.plot(steps[1:], middle[1:], color=colour, label=method, linewidth=2 if learned else 1.2, zorder=2 + learned)
    for multiple in (3, 10):
        for longer in curves.get(f"{method}, x{multiple}", [])[:1]:
            axes.plot(int(longer.steps[-1]), float(longer.values[-1].quantile(0.5).clamp(min=LEAST)), ".", color=colour)
    if learned:
        axes.fill_between(steps[1:], low[1:], high[1:], color=colour, alpha=0.15, linewidth=0)
