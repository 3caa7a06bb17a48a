"""Tables and figure of overhead.py."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lab.tables import interval, titled

COLOURS = {"MLP": "#0072B2", "CNN": "#D55E00", "transformer": "#009E73", "ReLU": "#0072B2", "linear": "#CC79A7"}
DASHES = {"SGD": "-", "Adam": "--", "gradient norm, 10 steps": "-", "balanced": ":"}
BOUND, BOUND_EVERY = 1.5, 100

Rows = list[dict[str, Any]]
Table = tuple[list[str], list[list[str]]]
"""Header and lines."""


def markdown(part: str, rows: Rows) -> str:
    """The table of one part; ratios with their 95 % intervals."""
    title, parts = {
        "detection": ("Finding the symmetry", _detection),
        "teleports": ("One teleport, in forward-backward passes", _teleports),
        "training": ("Training: seconds per step over those of the bare optimizer", _training),
        "widths": ("An MLP 784-w-w-10: one teleport, in forward-backward passes", _widths),
    }[part]
    return titled(f"**{title}**", *parts(rows))


def ratio(row: dict[str, Any]) -> str:
    """The ratio and its interval, as in 1.23 [1.20, 1.26]."""
    if row.get("extrapolated"):
        return f"{row['ratio']:.2f} (extrapolated)"
    return interval((row["ratio"], *row["ci95"]), _figures)


def _figures(x: float) -> str:
    return f"{x:.2f}" if x < 10 else f"{x:.3g}"


def _distinct(rows: Rows, *keys: str) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))


def _cells(rows: Rows, line: tuple[str, ...], column: tuple[str, ...]) -> list[list[str]]:
    """One line for each value of the ``line`` keys, one column for each value of the ``column`` keys."""
    found = {tuple(row[key] for key in line + column): ratio(row) for row in rows}
    columns = _distinct(rows, *column)
    return [[*map(str, x), *(found.get(x + y, "") for y in columns)] for x in _distinct(rows, *line)]


def _teleports(rows: Rows) -> Table:
    keys = ("teleport", "forward", "backward")
    return [*keys, *(name for (name,) in _distinct(rows, "network"))], _cells(rows, keys, ("network",))


def _training(rows: Rows) -> Table:
    shown = [{**row, "every": row["every"] or "never"} for row in rows]
    header = ["optimizer", "teleport every", "state", *(name for (name,) in _distinct(rows, "network"))]
    return header, _cells(shown, ("optimizer", "every", "state"), ("network",))


def _widths(rows: Rows) -> Table:
    columns = [f"{kind}: {name}" for kind, name in _distinct(rows, "network", "teleport")]
    return ["width", *columns], _cells(rows, ("width",), ("network", "teleport"))


def _detection(rows: Rows) -> Table:
    lines = [
        [
            row["network"],
            f"{row['parameters']:,}",
            str(row["sites"]),
            str(row["threads"]),
            f"{row['seconds']:.2f} ({row['longest']:.2f})",
            f"{row['passes']:.0f}",
        ]
        for row in rows
    ]
    return ["network", "parameters", "sites", "threads", "seconds (longest)", "forward-backward passes"], lines


def plot(results: dict[str, Any]) -> Figure:
    """The slowdown against the interval between teleports, and the cost of one against the width."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    _draw_training(left, results["training"])
    _draw_widths(right, results["widths"])
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
    left.yaxis.set_minor_formatter("{x:g}")
    return figure


def _draw_training(axes: Axes, rows: Rows) -> None:
    shown = sorted((r for r in rows if r["every"] and r["state"] == "transport"), key=lambda row: row["every"])
    for network, optimizer in _distinct(rows, "network", "optimizer"):
        line = [row for row in shown if (row["network"], row["optimizer"]) == (network, optimizer)]
        style: dict[str, Any] = {
            "linestyle": DASHES[optimizer],
            "color": COLOURS[network],
            "label": f"{network}, {optimizer}",
        }
        axes.plot([row["every"] for row in line], [row["ratio"] for row in line], marker=".", **style)
    axes.plot(BOUND_EVERY, BOUND, "v", color="black", label=f"bound: {BOUND} at {BOUND_EVERY}")
    axes.set(xlabel="steps between teleports", ylabel="seconds per step / bare optimizer's", title="training")


def _draw_widths(axes: Axes, rows: Rows) -> None:
    for kind, name in _distinct(rows, "network", "teleport"):
        line = [row for row in rows if (row["network"], row["teleport"]) == (kind, name)]
        low, high = ([abs(row["ratio"] - row["ci95"][side]) for row in line] for side in (0, 1))
        style: dict[str, Any] = {"linestyle": DASHES[name], "color": COLOURS[kind], "label": f"{kind}: {name}"}
        axes.errorbar([row["width"] for row in line], [row["ratio"] for row in line], [low, high], marker=".", **style)
    axes.set(xlabel="width w of an MLP 784-w-w-10", ylabel="forward-backward passes", title="one teleport")
