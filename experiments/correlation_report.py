"""Tables and figures of correlation.py, the figures in the style of the paper's Figures 9 and 10."""

from typing import Any

from matplotlib.figure import Figure


def markdown(results: list[dict[str, Any]]) -> str:
    return ""


def plot(results: list[dict[str, Any]], kind: str) -> Figure:
    return Figure()
