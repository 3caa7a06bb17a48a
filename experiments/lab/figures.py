"""How figures look: colours, bands, scatters."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from experiments.lab.tables import interval_of

# Okabe and Ito's colours, which colour-blind people can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*h<>"


def shades(axes: Axes, x: Sequence[float], values: Tensor, **style: Any) -> None:
    """The median over the columns of ``values`` ``(len(x), tasks)`` and a band from the 10 % to the 90 % quantile."""
    low, middle, high = values.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype), dim=1)
    axes.plot(x, middle, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def scatter(axes: Axes, run: dict[str, Any], name: str) -> None:
    """Test loss against the measure ``name``, one dot per seed, with the line of least squares."""
    found = run["measures"][name]
    x, y = np.array(found["values"]), np.array(run["test_loss"])
    axes.scatter(x, y, s=9, color=COLOURS[0], alpha=0.7, linewidths=0)
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, np.polyval(np.polyfit(x, y, 1), ends), color=COLOURS[1], linewidth=1.2)
    axes.set_title(f"r = {interval_of(found['test'])}", fontsize=9)
    axes.set_xlabel(name, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", nbins=4)
    axes.ticklabel_format(useOffset=False)
