"""What each statement of theory.py returns, and how its figure and its table look."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.axes import Axes
from rich.table import Table
from torch import Tensor

# Okabe and Ito's colours, which colour-blind people can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*h<>"


@dataclass(frozen=True)
class Statement:
    """A title, the rows of its table, and what its figure shows beside them."""

    title: str
    rows: list[dict[str, Any]]
    curves: dict[str, Any] = field(default_factory=dict)


def table(statement: Statement) -> Table:
    names = list(dict.fromkeys(name for row in statement.rows for name in row))
    drawn = Table(*names, title=statement.title)
    for row in statement.rows:
        drawn.add_row(*(shown(row.get(name)) for name in names))
    return drawn


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return f"[{', '.join(shown(v) for v in value)}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def shades(axes: Axes, x: Sequence[float], values: Tensor, **style: Any) -> None:
    """The median over the columns of ``values`` ``(len(x), tasks)`` and a band from the 10 % to the 90 % quantile."""
    low, middle, high = values.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype), dim=1)
    axes.plot(x, middle, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
