"""Tables and figures of generalization.py."""

from typing import Any

from matplotlib.figure import Figure


def markdown(results: list[dict[str, Any]]) -> str:
    return ""


def plot_branches(content: dict[str, Any]) -> Figure:
    return Figure()


def plot_frequencies(content: dict[str, Any]) -> Figure:
    return Figure()
