"""What people see while they wait, how they stop it, and tables afterwards.

Nothing moves where standard error is not a terminal.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from meta_teleport.cli.tables import fit

if TYPE_CHECKING:
    from meta_teleport.evaluation.measurement import Report
    from meta_teleport.meta import loop

WIDE = 140


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT or SIGTERM only sets what the yielded function returns; the second one acts at once."""
    asked = threading.Event()

    def ask(number: int, frame: Any) -> None:
        asked.set()
        for signum, handler in former.items():
            signal.signal(signum, handler)

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    former = {signum: signal.signal(signum, ask) for signum in signals}
    try:
        yield asked.is_set
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


@contextmanager
def training_bar(meta_steps: int, done: int = 0) -> "Iterator[Callable[[loop.Progress], None] | None]":
    """A bar over the meta-steps with meta-loss, task-steps per second, failed tasks and time left; None if piped."""
    fields = "meta-loss {task.fields[loss]:.4g}  {task.fields[rate]:.0f} task-steps/s  {task.fields[failed]} failed"
    with _bar(fields) as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task("train", total=meta_steps, completed=done, loss=float("nan"), rate=0.0, failed=0)

        def report(now: "loop.Progress") -> None:
            bar.update(task, completed=now.meta_step, loss=now.meta_loss, rate=now.rate, failed=now.failed)

        yield report


@contextmanager
def method_bars() -> "Iterator[Report | None]":
    """One bar that shows method after method of an evaluation; None if piped."""
    with _bar("{task.description}") as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task("", total=None)

        def report(method: str, done: int, total: int) -> None:
            bar.update(task, description=method, completed=done, total=total)

        yield report


@contextmanager
def counting_bar(total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A bar over ``total`` pieces of work with the time left; the yielded function takes how many are done, and what
    is going on."""
    with _bar("{task.description}") as bar:
        if bar is None:
            yield lambda completed, text: None
            return
        task = bar.add_task("", total=total, completed=done)
        yield lambda completed, text: bar.update(task, completed=completed, description=text)


def width() -> int:
    """The columns of standard output: those of the terminal or of COLUMNS, or 140 where there is neither."""
    console = Console()
    return console.width if console.is_terminal or os.environ.get("COLUMNS", "").isdigit() else WIDE


def show(*tables: Table) -> None:
    """Tables on standard output, in so many that none is wider than it (see :func:`fit`)."""
    console = Console(width=width(), markup=False, emoji=False)
    for i, part in enumerate(part for table in tables for part in fit(table, console.width)):
        console.print(*([""] if i else []), part, sep="\n")


def show_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values in two columns."""
    listed = list(pairs)
    width = max(len(name) for name, _ in listed)
    for name, value in listed:
        print(f"{name:{width}}  {value}")


@contextmanager
def _bar(text: str) -> Iterator[Progress | None]:
    if not sys.stderr.isatty():
        yield None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(text), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield bar
