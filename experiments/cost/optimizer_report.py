"""Tables of optimizer_cost.py."""

from typing import Any

from experiments.cost.report import ratio
from experiments.lab.tables import titled

HEADER = ["rule", "width", "parameters", "sites", "iteration / Adam's", "step / Adam's", "step, ms", "Adam's, ms"]


def markdown(rows: list[dict[str, Any]]) -> str:
    """One table per kind of network."""
    tables = []
    for kind in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == kind]
        lines = []
        for rule, width in dict.fromkeys((row["rule"], row["width"]) for row in own):
            iteration, step = (row for row in own if (row["rule"], row["width"]) == (rule, width))
            sizes = [str(width), f"{step['parameters']:,}", str(step["sites"])]
            times = [f"{1e3 * step[name]:.2f}" for name in ("seconds", "reference_seconds")]
            lines.append([rule, *sizes, ratio(iteration), ratio(step), *times])
        tables.append(titled(f"**{kind}**", HEADER, lines))
    return "\n".join(tables)
