"""Figures of generalization.py."""

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.generalization.frequency import EVERY
from experiments.generalization.statistics import band
from experiments.generalization.teleports import PLAIN

COLOURS = {
    PLAIN: "black",
    "lower": "#0072B2",
    "raise": "#D55E00",
    "lower, random": "#7FBCE0",
    "raise, random": "#E6AB6B",
}
COLUMNS = (
    "published, sharpness",
    "published, curvature",
    "limited, curvature",
    "scaling, sharpness",
    "scaling, curvature",
)

LINEAR = 0.01
"""Differences below are on a linear scale, larger ones on a logarithmic one."""


def plot_branches(content: dict[str, Any]) -> Figure:
    """Test loss around the teleport, and its difference to no teleport, per action and quantity."""
    branches = content["branches"]
    rows = {row["variant"]: row for row in branches["rows"]}
    columns = [c for c in COLUMNS if any(name.startswith(c) for name in rows)]
    figure = Figure(figsize=(2.7 * len(columns), 5.4), layout="constrained")
    grid = figure.subplots(2, len(columns), squeeze=False, sharex=True)
    for number, column in enumerate(columns):
        chosen = {name.removeprefix(column).strip(): row for name, row in rows.items() if name.startswith(column)}
        for line, axes in enumerate(grid[:, number]):
            for label, row in {PLAIN: rows[PLAIN], **chosen}.items():
                if line == 0 or label != PLAIN:
                    _curve(axes, row, rows[PLAIN] if line else None, branches["from"], label)
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=8)
            axes.axvline(branches["from"], color="grey", linewidth=0.8, linestyle=":")
            if line:
                axes.axhline(0, color="black", linewidth=0.8)
                axes.set_xlabel("epoch")
            _scale(axes, line == 1, 2 * max(rows[PLAIN]["test"][0]))
        grid[0, number].set_title(column)
    grid[0, 0].set_ylabel("test loss")
    grid[1, 0].set_ylabel("test loss, difference to no teleport")
    _legend(figure, grid.flat)
    figure.suptitle(f"{content['data']}: teleports at epoch {branches['from']}, {branches['seeds']} seeds, 95 % bands")
    return figure


def _scale(axes: Axes, differences: bool, large: float) -> None:
    """Losses that explode take a logarithmic scale."""
    if differences and axes.get_ylim()[1] > 10 * LINEAR:
        axes.set_yscale("symlog", linthresh=LINEAR)
        axes.set_ylim(bottom=-3 * LINEAR)
    elif axes.get_ylim()[1] > large:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if axes.get_ylim()[1] < 3 else "")
        axes.tick_params(labelsize=8, which="both")


def _curve(axes: Axes, row: dict[str, Any], plain: dict[str, Any] | None, first: int, label: str) -> None:
    """The losses per epoch, with the one right after the teleports beside that right before."""
    values = _losses(row) if plain is None else _losses(row) - _losses(plain)
    at = [first, first + 0.1, *range(first + 1, first + len(values) - 1)]
    mean, low, high = band(values)
    style = "--" if "random" in label else "-"
    axes.plot(at, mean, style, color=COLOURS[label], label="no teleport" if label == PLAIN else label, linewidth=1.2)
    axes.fill_between(at, low, high, color=COLOURS[label], alpha=0.2, linewidth=0)


def _losses(row: dict[str, Any]) -> torch.Tensor:
    return torch.tensor([row["test"][0], row["probes"]["after"]["test loss"], *row["test"][1:]])


def plot_frequencies(content: dict[str, Any]) -> Figure:
    """Last test loss and gap against how often one teleports."""
    frequency = content["frequency"]
    found = {(row["variant"], row["frequency"]): row for row in frequency["differences"]}
    columns = [c for c in COLUMNS if any(name.startswith(c) for name, _ in found)]
    figure = Figure(figsize=(2.7 * len(columns), 5), layout="constrained")
    grid = figure.subplots(2, len(columns), squeeze=False, sharex=True)
    labels = list(EVERY)
    for number, column in enumerate(columns):
        for axes, key in zip(grid[:, number], ("test", "gap"), strict=True):
            directions = [d for d in ("lower", "raise") if (f"{column} {d}", labels[0]) in found]
            for shift, direction in zip((-0.08, 0.08), directions, strict=False):
                cells = [found[f"{column} {direction}", name][key] for name in labels]
                kept = [(i + shift, cell) for i, cell in enumerate(cells) if cell["mean"] is not None]
                means = [cell["mean"] for _, cell in kept]
                sides = [[abs(cell[side] - cell["mean"]) for _, cell in kept] for side in ("low", "high")]
                at = [x for x, _ in kept]
                axes.errorbar(at, means, sides, fmt="o-", color=COLOURS[direction], label=direction, capsize=2, ms=4)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=8)
            axes.set_xticks(range(len(labels)), labels, rotation=30)
        grid[0, number].set_title(column)
    grid[0, 0].set_ylabel("test loss,\ndifference to no teleport")
    grid[1, 0].set_ylabel("test - training loss,\ndifference to no teleport")
    _legend(figure, grid.flat)
    title = f"{content['data']}: teleports from epoch {frequency['from']} on, after epoch {frequency['to']}"
    figure.suptitle(f"{title}, {frequency['seeds']} seeds, 95 % intervals")
    return figure


def _legend(figure: Figure, grid: Any) -> None:
    named = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False)
