"""What people see while they wait, how they stop it, and tables afterwards.

Where standard error is not a terminal nothing moves: a line every ten seconds stands in place of a bar.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from meta_teleport.cli.tables import fit
from meta_teleport.errors import printable

if TYPE_CHECKING:
    from meta_teleport.evaluation.measurement import Report
    from meta_teleport.meta import loop

WIDE = 140
INTERVAL = 10.0
"""Seconds between two lines."""
SPEED = 120.0
"""Seconds over which a bar takes the mean of the speed."""


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
def training_bar(meta_steps: int, done: int = 0) -> "Iterator[Callable[[loop.Progress], None]]":
    """Meta-steps with meta-loss, task-steps per second, failed tasks and time left."""
    with counting_bar(meta_steps, done, "train") as show:

        def report(now: "loop.Progress") -> None:
            text = f"meta-loss {now.meta_loss:.4g}, {now.rate:.0f} task-steps/s, {now.failed} failed"
            show(now.meta_step, text)

        yield report


@contextmanager
def evaluation_bar() -> "Iterator[Report]":
    """Method after method of an evaluation, and the time left for all of it."""
    with progress("evaluate", lambda done, total: f"{done / total:4.0%}") as show:
        now = ""

        def report(name: str, done: int, total: int) -> None:
            nonlocal now
            if name == "evaluation":
                show(done, total, now)
            else:
                now = f"{name} {done}/{total}"

        yield report


@contextmanager
def counting_bar(total: int, done: int = 0, what: str = "") -> Iterator[Callable[[int, str], None]]:
    """``total`` pieces of work with the time left; the yielded function takes how many are done, and what is going
    on."""
    with progress(what, lambda done, total: f"{done}/{total}", done) as show:
        yield lambda completed, text: show(completed, total, text)


@contextmanager
def progress(what: str, count: Callable[[int, int], str], before: int = 0) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error or, where that is no terminal, a line every ten seconds: how much of how much is done
    (``before`` of it when this began), in the words of ``count``, what is going on, and the time left."""
    if not sys.stderr.isatty():
        yield _lines(what, count)
        return
    columns = (BarColumn(), TextColumn("{task.fields[count]}  {task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=SPEED) as bar:
        task = bar.add_task("", total=None, completed=before, count="")

        def show(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text, count=count(done, total))

        yield show


def _lines(what: str, count: Callable[[int, int], str]) -> Callable[[int, int, str], None]:
    """The time left is counted from the first piece of work that is done here, so that a run may go on with others."""
    began = last = time.monotonic()
    before: int | None = None
    start = f"{what}: " if what else ""

    def show(done: int, total: int, text: str) -> None:
        nonlocal began, last, before
        now = time.monotonic()
        if before is None:
            began, before = now, done
        if now - last >= INTERVAL and done > before:
            last = now
            left = timedelta(seconds=round((now - began) * (total - done) / (done - before)))
            print(f"{start}{count(done, total).strip()}, {text}, {left} left", file=sys.stderr, flush=True)

    return show


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
    listed = [(printable(name), printable(value)) for name, value in pairs]
    width = max(len(name) for name, _ in listed)
    for name, value in listed:
        print(f"{name:{width}}  {value}")
