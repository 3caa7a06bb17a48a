"""Tables that fit where they are printed: words are broken and columns go into further tables, numbers stay whole."""

import re
from collections.abc import Sequence
from textwrap import TextWrapper

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

GAP = 2
LEAST = 12
LONGEST = 24
"""Pieces of words that are longer are cut where the column is narrower."""


class Breaker(TextWrapper):
    """Breaks lines at blanks and after the dots, slashes, hyphens and underscores in names, never within a number."""

    wordsep_re = re.compile(r"(\s+)|(?<=[._/])(?=\w)(?<!\d\.(?=\d))|(?<=-)(?=[a-z])")

    def _split(self, text: str) -> list[str]:
        return [piece for piece in self.wordsep_re.split(text) if piece]


def fit(table: Table, width: int) -> list[Table]:
    """The table as it is where it is no wider than ``width``.

    Otherwise without its frame, its words broken; where that does not suffice, the columns that have no room stand in
    further tables, each with the first column again. Columns with ``no_wrap`` keep every character.
    """
    if _width(table) <= width:
        return [table]
    least = _least(table.columns[0])
    whole = min(_natural(table.columns[0]), max(least, width // 2))
    broken, unbroken = (_divided(table.columns, key, width) for key in (least, whole))
    key, divided = (whole, unbroken) if len(unbroken) == len(broken) > 1 else (least, broken)
    return [_part(table, columns, key, width, title=columns is divided[0]) for columns in divided]


def _divided(columns: Sequence[Column], key: int, width: int) -> list[list[Column]]:
    """The columns in groups that have room beside the first, of width ``key``, which begins every group."""
    first, *others = columns
    groups, room = [[first]], width - key
    for column in others:
        needed = GAP + _least(column)
        if needed > room and len(groups[-1]) > 1:
            groups.append([first])
            room = width - key
        groups[-1].append(column)
        room -= needed
    return groups


def _part(table: Table, columns: Sequence[Column], key: int, width: int, title: bool) -> Table:
    """Some columns of a table, the first of width ``key``, in which words have the room that ``width`` leaves."""
    widths = [key, *(_least(column) for column in columns[1:])]
    for _ in range(width - sum(widths) - GAP * (len(columns) - 1)):
        wanting = [i for i, column in enumerate(columns) if widths[i] < _natural(column)]
        if wanting:
            widths[min(wanting, key=lambda i: widths[i])] += 1
    built = Table(
        title=table.title if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),
    )
    for column, room in zip(columns, widths, strict=True):
        built.add_column(_broken(str(column.header), room), justify=column.justify, no_wrap=True, overflow="fold")
    cells = [[_broken(str(cell), room) for cell in c.cells] for c, room in zip(columns, widths, strict=True)]
    for row, values in zip(table.rows, zip(*cells, strict=True), strict=True):
        built.add_row(*values, style=row.style, end_section=row.end_section)
    return built


def _least(column: Column) -> int:
    """The narrowest that a column can be: its numbers whole, its words in pieces."""
    if column.no_wrap:
        return max(_longest_piece(str(column.header)), *(_longest_line(str(cell)) for cell in column.cells), 1)
    pieces = [_longest_piece(str(text)) for text in (column.header, *column.cells)]
    return max(min(max(pieces), LONGEST), min(_natural(column), LEAST))


def _longest_piece(text: str) -> int:
    return max(map(len, Breaker()._split(text)), default=0)


def _natural(column: Column) -> int:
    return max(_longest_line(str(text)) for text in (column.header, *column.cells))


def _longest_line(text: str) -> int:
    return max(map(len, text.split("\n")))


def _broken(text: str, width: int) -> str:
    """The text in lines of at most ``width`` characters."""
    return "\n".join(piece for line in text.split("\n") for piece in Breaker(width).wrap(line) or [""])


def _width(table: Table) -> int:
    """How wide the table would like to be, its title aside."""
    console = Console(width=10_000)
    return Measurement.get(console, console.options, table).maximum
