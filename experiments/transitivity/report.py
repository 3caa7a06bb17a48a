"""Tables and figure of transitivity.py."""

from statistics import median
from typing import Any

from matplotlib.figure import Figure

from experiments.lab.tables import table

Rows = list[dict[str, Any]]

COLOURS = {"orbit": "#0072B2", "fibre": "#E69F00", "level": "#CCCCCC"}
HEADER = (
    *("network", "action", "points", "when", "loss", "gradient norm", "parameters", "level set", "fibre on the batch"),
    *("fibre of the function", "orbit", "orbit / level set", "does the orbit fill it?", "gap"),
)


def points(rows: Rows) -> list[Rows]:
    """The rows of one network, action and time at a time: one per seed."""
    found: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        found.setdefault((row["network"], tuple(row["actions"]), row["when"]), []).append(row)
    return list(found.values())


def bound(row: dict[str, Any]) -> int:
    """The dimension of the fibre that the orbit cannot leave: of the function for exact sites."""
    return int(row["fibre" if set(row["actions"]) & {"(a)", "(b)"} else "function"])


def verdict(row: dict[str, Any]) -> str:
    """What the orbit fills, by its dimension."""
    if row["orbit"] == row["level"]:
        return "the level set"
    missing = bound(row) - row["orbit"]
    if missing:
        return f"no: {missing} of {bound(row)} dimensions of the fibre are missing"
    return f"the fibre {'of the function' if bound(row) == row['function'] else 'on the batch'}"


def markdown(rows: Rows) -> str:
    """One line per network, action and time; medians over seeds, with the range where they differ."""
    lines = []
    for seeds in points(rows):
        first = seeds[0]
        verdicts = list(dict.fromkeys(map(verdict, seeds)))
        cells = [
            first["network"],
            " + ".join(first["actions"]),
            str(first["points"]),
            first["when"],
            *(f"{median(row[key] for row in seeds):.1e}" for key in ("loss", "gradient")),
            *(counted([row[key] for row in seeds]) for key in ("parameters", "level", "fibre", "function", "orbit")),
            f"{median(row['orbit'] / row['level'] for row in seeds):.2f}",
            " / ".join(verdicts),
            f"{min(row['gap'] for row in seeds):.0e}",
        ]
        lines.append(cells)
    return table(HEADER, lines) + "\n"


def counted(values: list[int]) -> str:
    middle, low, high = int(median(values)), min(values), max(values)
    return str(middle) if low == high else f"{middle} [{low}, {high}]"


def plot(rows: Rows) -> Figure:
    """The dimensions at the trained weights, each as a part of that of the level set."""
    shown = [seeds for seeds in points(rows) if seeds[0]["when"] == "trained"][::-1]
    figure = Figure(figsize=(7.5, 0.8 + 0.24 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, seeds in enumerate(shown):
        parts = {
            "level": 1.0,
            "fibre": median(bound(row) / row["level"] for row in seeds),
            "orbit": median(row["orbit"] / row["level"] for row in seeds),
        }
        for name, part in parts.items():
            axes.barh(place, part, color=COLOURS[name], height=0.36 if name == "orbit" else 0.72)
    labels = [f"{seeds[0]['network']}: {' + '.join(seeds[0]['actions'])}" for seeds in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    named = {"level": "level set", "fibre": "fibre of the outputs", "orbit": "orbit"}
    handles = [axes.barh(0, 0, color=COLOURS[name], label=label) for name, label in named.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    axes.set(xlabel="dimension / dimension of the level set", xlim=(0, 1), ylim=(-0.6, len(shown) - 0.4))
    return figure
