"""Markdown tables and the numbers in them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join([line(header), f"|{'---|' * len(header)}", *map(line, rows)])


def titled(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same under a title."""
    return f"{title}\n\n{table(header, rows)}\n"


def line(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def interval(values: Iterable[float], form: str | Callable[[float], str] = "+.2f", factor: float = 1.0) -> str:
    """``middle [low, high]``, each times ``factor`` in the same form."""
    show = form if callable(form) else lambda x: format(x, form)
    middle, low, high = (show(factor * value) for value in values)
    return f"{middle} [{low}, {high}]"


def interval_of(found: dict[str, Any] | None, key: str = "ci95") -> str:
    """A correlation with its interval as text; nothing where there is none."""
    return "" if found is None else interval((found["r"], *found[key]))
