"""Tables and figures of architectures.py."""

from typing import Any

from matplotlib.figure import Figure

Results = list[dict[str, Any]]


def figures(results: Results) -> dict[str, Figure]:
    """Every figure by name."""
    return {}


def markdown(results: Results) -> str:
    """All tables."""
    return ""
