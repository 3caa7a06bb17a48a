"""Tables and figure of the cost of teleports against the size of the network."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.cost.report import ratio
from experiments.cost.sizes import WIDE
from experiments.lab.tables import interval, titled

Rows = list[dict[str, Any]]

COLOURS = ("#0072B2", "#CC79A7", "#D55E00", "#E69F00", "#009E73", "#56B4E9")
MARKERS = "osD^vP"


def markdown(rows: Rows, fits: Rows) -> str:
    """Passes against width and against depth, and the exponents."""
    names = list(dict.fromkeys(row["teleport"] for row in rows))
    parts = []
    for axis, title in (("width", "two hidden layers of width w"), ("depth", "hidden layers of one width")):
        own = [row for row in rows if row["against"] == axis]
        places = list(dict.fromkeys((row["width"], row["depth"], row["parameters"]) for row in own))
        found = {(row["width"], row["depth"], row["teleport"]): ratio(row) for row in own}
        lines = [[str(w), str(d), f"{p:,}", *(found[w, d, name] for name in names)] for w, d, p in places]
        columns = ["w", "layers", "parameters", *names]
        parts.append(titled(f"**One teleport in passes, {title}**", columns, lines))
    header = [
        "teleport",
        "in the width",
        f"widths from {WIDE} on",
        "last two widths",
        "operation counts",
        "in the depth",
    ]
    lines = [
        [
            fit["teleport"],
            exponent(fit["width"]),
            exponent(fit["wide"]),
            "" if fit["last"] is None else f"{fit['last']:+.2f}",
            str(fit["theory"]),
            exponent(fit["depth"]),
        ]
        for fit in fits
    ]
    return "\n".join([*parts, titled("**Exponents of the passes, with 95 % intervals**", header, lines)])


def exponent(fit: dict[str, Any] | None) -> str:
    if fit is None:
        return ""
    return f"{fit['exponent']:+.2f}" if fit["ci95"] is None else interval((fit["exponent"], *fit["ci95"]))


def plot(rows: Rows, fits: Rows) -> Figure:
    """Passes against the width and against the depth, both logarithmic, with the fitted powers of the width."""
    figure = Figure(figsize=(9.0, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, fit in enumerate(fits):
        style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4, "label": fit["teleport"]}
        for axes, axis in ((left, "width"), (right, "depth")):
            own = [row for row in rows if (row["teleport"], row["against"]) == (fit["teleport"], axis)]
            _draw(axes, own, axis, style)
        if fit["wide"] is not None:
            shown = [r["width"] for r in rows if r["against"] == "width" and r["width"] >= WIDE]
            ends = [min(shown), max(shown)]
            line = [fit["wide"]["at"] * w ** fit["wide"]["exponent"] for w in ends]
            left.plot(ends, line, "--", color=COLOURS[number], linewidth=0.9)
    deep = next(row["width"] for row in rows if row["against"] == "depth")
    left.set(xlabel="width w of an MLP 784-w-w-10", ylabel="forward-backward passes", title="one teleport")
    right.set(xlabel="hidden layers", title=f"the same, at width {deep}")
    for axes, axis in ((left, "width"), (right, "depth")):
        places = sorted({row[axis] for row in rows if row["against"] == axis})
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(places, map(str, places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    return figure


def _draw(axes: Axes, rows: Rows, axis: str, style: dict[str, Any]) -> None:
    x, y = [row[axis] for row in rows], [row["ratio"] for row in rows]
    low, high = ([abs(row["ratio"] - row["ci95"][side]) for row in rows] for side in (0, 1))
    axes.errorbar(x, y, [low, high], linestyle="-", linewidth=1.2, **style)
