"""The metrics of a run: ``metrics.jsonl``, an object per line, and the same numbers for TensorBoard.

Both are written at once, so that a process that is killed has lost nothing that it has said.
"""

import json
import math
import os
import socket
import time
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

from meta_teleport.runs.files import opened
from meta_teleport.runs.writing import append, make_folder, write_atomically

SHOWN = 5
"""So many lines that cannot be read are named."""


def write_row(path: Path, step: int, metrics: dict[str, float]) -> None:
    """Appends the metrics of one meta-step; what is not finite becomes null. Raises ``UserError`` if the file cannot
    be written."""
    row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    append(path, (json.dumps({"meta_step": step, **row}) + "\n").encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows, none if there is no such file. Lines that cannot be read are left out, and a warning says which these
    are; of a last line that is cut off, as a crash leaves it, it says nothing.

    Raises ``UserError`` for a file that cannot be read.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return []
    with opened(path) as file:
        *lines, last = file.read().split(b"\n")
    found = {number: _row(line) for number, line in enumerate(lines, 1)}
    if bad := [str(number) for number, row in found.items() if row is None]:
        listed = ", ".join(bad[:SHOWN]) + (", ..." if len(bad) > SHOWN else "")
        left_out = f"line {listed} cannot be read and is" if len(bad) == 1 else f"lines {listed} cannot be read and are"
        warnings.warn(f"{path}: {left_out} left out; the other {len(found) - len(bad)} are kept", stacklevel=3)
    return [row for row in (*found.values(), _row(last)) if row is not None]


def cut(path: Path, step: int) -> None:
    """Drops the rows of meta-steps after ``step``, and lines that cannot be read, with :func:`read_rows`'s warning.

    Raises ``UserError`` where that does, and if the file cannot be written.
    """
    kept = [row for row in read_rows(path) if row["meta_step"] <= step]
    if os.path.lexists(path):
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("meta_step"), int) else None


class Events:
    """A new file of events for TensorBoard in ``folder``, which is made. They replace those of the meta-steps from
    ``step`` on that earlier files hold.

    Raises ``UserError`` if it cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        make_folder(folder)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)  # TensorBoard reads files in the order of their names
        where = f"{socket.gethostname()}.{os.getpid()}"
        self._path = folder / f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{where}"
        append(self._path, _records({"file_version": "brain.Event:2"}, {"step": step, "session_log": {"status": 1}}))

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of one meta-step. Raises ``UserError`` if they cannot be written."""
        from torch.utils.tensorboard.summary import scalar

        shown = ({"step": step, "summary": scalar(name, value)} for name, value in metrics.items())
        append(self._path, _records(*shown))


def _records(*events: dict[str, Any]) -> bytes:
    """Events as TensorBoard's files hold them, one after the other."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    records = BytesIO()
    writer = RecordWriter(records)
    for event in events:
        writer.write(Event(wall_time=time.time(), **event).SerializeToString())
    return records.getvalue()
