"""What each statement of the theory returns, and its table."""

from dataclasses import dataclass, field
from typing import Any

from rich.table import Table


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
