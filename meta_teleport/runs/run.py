"""The run folder: what was asked for, what it ran on, and what came out.

::

    config.json            family, rule, training, seed, dtype: enough to build everything again
    provenance.json        revision, versions, platform, device, time
    metrics.jsonl          one line per logged meta-step
    tensorboard/           the same scalars as events
    training.safetensors   the state of the run, to resume from; training.1 and training.2 are those before it
    rule.safetensors       the rule, to load and evaluate
    lock                   who trains in it, or did last

One process at a time trains in a folder; others may read it. What is on disk is whole at every moment, and the metrics
are there before the state that counts them.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meta_teleport.errors import UserError, nearest
from meta_teleport.runs import overwriting
from meta_teleport.runs.files import CONFIG, TEXT, names_beside, parse_json, read_text
from meta_teleport.runs.lock import Lock
from meta_teleport.runs.metrics import Events, cut, read_rows, write_row
from meta_teleport.runs.provenance import provenance
from meta_teleport.runs.states import NAMES, load_newest, save_state
from meta_teleport.runs.writing import make_folder, remove_left_overs, sync, write_atomically

FORMAT = 1
LONGEST = 10**8
"""More meta-steps than any run takes."""
IMPORTED = "import"
"""Where a config keeps the modules that were imported for it: names to tell people, never to import."""


class Run:
    """One run folder. ``config`` is the content of config.json: format, task, rule, training, seed, dtype, and
    import if modules were named."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = Path(folder), config
        self._lock: Lock | None = None
        self._events: Events | None = None
        self._newest: int | None = None  # the meta-step of the newest state, if that is there and good

    @classmethod
    def create(cls, folder: str | Path, config: dict[str, Any], device: str = "cpu", overwrite: bool = False) -> "Run":
        """A new folder with config.json and provenance.json, for this process alone until :meth:`close`. With
        ``overwrite`` what another run has written there is removed.

        The config comes last: what is stopped before leaves a folder that can be taken again. Raises ``UserError`` if
        there is something in it, what is there is no run's, or another process has it.
        """
        run = cls(Path(os.path.expanduser(folder)), {})
        try:
            if overwrite and not overwriting.is_vacant(run.folder):
                overwriting.own_files(run.folder)
                run.lock()
                overwriting.clear(run.folder)
            else:
                run._require_vacant()
                make_folder(run.folder)
                run.lock()
                run._require_vacant()  # another process may have been here and gone
            write_json(run.folder / "provenance.json", provenance(device))
            run.update({"format": FORMAT, **config})
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, folder: str | Path, lock: bool = False) -> "Run":
        """The run in ``folder``, with ``lock`` for this process alone until :meth:`close`.

        Raises ``UserError`` if it is missing, not a run folder, cut off, or of another format, and for a ``lock`` that
        another process has.
        """
        folder = Path(os.path.expanduser(folder))
        if not folder.is_dir():
            near = nearest(folder.name, names_beside(folder))
            make = f"make one by: train --out {folder}"
            raise UserError(f"there is no run folder {folder}{near}: check the path, or {make}")
        path = folder / "config.json"
        if not path.is_file():
            raise UserError(f"{folder} is not a run folder (no config.json in it): give the --out of a training run")
        run = cls(folder, {})
        if lock:
            run.lock()
        try:
            run.config = read_json(path, CONFIG)
            check_format(run.config, path)
            check_config(run.config, path)
            missing = [key for key in ("task", "rule", "training", "seed", "dtype") if key not in run.config]
            if missing:
                raise UserError(f"{path} is damaged (no '{missing[0]}' in it): restore it, or train again")
        except BaseException:
            run.close()
            raise
        return run

    @property
    def rule_path(self) -> Path:
        """The rule as :func:`meta_teleport.learned.serialization.save` writes it."""
        return self.folder / "rule.safetensors"

    @property
    def state_path(self) -> Path:
        """The newest state, which resuming needs, see :mod:`meta_teleport.runs.states`."""
        return self.folder / NAMES[0]

    @property
    def metrics_path(self) -> Path:
        """One JSON object per line: meta_step and the metrics of that meta-step."""
        return self.folder / "metrics.jsonl"

    def update(self, config: dict[str, Any]) -> None:
        """Replaces the config, on disk too."""
        self.config = config
        write_json(self.folder / "config.json", config)

    def lock(self) -> None:
        """Keeps the folder to this process until :meth:`close`, and removes what interrupted writing has left there.

        Raises ``UserError`` if another process trains in it, or it cannot be written.
        """
        if self._lock is None:
            self._lock = Lock(self.folder)
            remove_left_overs(self.folder, overwriting.TRAINING)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Appends the metrics of one meta-step to metrics.jsonl and TensorBoard; what is not finite becomes null."""
        write_row(self.metrics_path, step, metrics)
        if self._events is None:
            self._events = Events(overwriting.events_of(self.folder), step)
        self._events.add(step, metrics)

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl that can be read, see :func:`meta_teleport.runs.metrics.read_rows`."""
        return read_rows(self.metrics_path)

    def rewind(self, step: int) -> None:
        """Drops the metrics of meta-steps after ``step``, which a resumed run will compute again."""
        cut(self.metrics_path, step)
        self._events = Events(overwriting.events_of(self.folder), step + 1)

    def load(self, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state that can be read, None if none is saved, as :func:`states.load_newest`."""
        found = load_newest(self.folder, device)
        if found is None:
            return None
        self._newest = found.numbers.get("meta_step") if found.is_newest else None
        return found.tensors, found.numbers

    def save(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Keeps a state, ``numbers["meta_step"]`` among it, after the metrics that it counts are on disk, and those of
        the two meta-steps before that were saved."""
        try:
            if self.metrics_path.exists():
                sync(self.metrics_path)
            sync(self.folder)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror}): check space and permissions"
            ) from None
        save_state(self.folder, tensors, numbers, keep=self._newest not in (None, numbers["meta_step"]))
        self._newest = numbers["meta_step"]

    def close(self) -> None:
        """Gives the folder back to other processes."""
        self._events = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _require_vacant(self) -> None:
        if not overwriting.is_vacant(self.folder):
            raise UserError(
                f"folder {self.folder} is not empty: choose another --out, go on with it by --resume, or begin anew by "
                "--overwrite, which removes what a run wrote and nothing else"
            )


def require_writable(folder: Path) -> None:
    """Raises ``UserError`` if nothing can be written into ``folder``, or no such folder be made; makes nothing."""
    there = folder
    while not os.path.exists(there) and there != there.parent:
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise UserError(f"folder {folder} cannot be written: check its permissions, or choose another by --out")


def read_json(path: Path, limit: int = TEXT) -> dict[str, Any]:
    """A JSON object from a file of at most ``limit`` bytes. Raises ``UserError`` if it cannot be read, is cut off or
    something else."""
    content = parse_json(read_text(path, limit), path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: restore it, or train again")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON object to a file, indented, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def check_format(content: dict[str, Any], path: Path) -> None:
    """Raises ``UserError`` naming both versions if ``content`` was written in another format."""
    found = content.get("format")
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found} and this version of meta_teleport reads format {FORMAT}: use the version "
            "that wrote it, or train again"
        )


def check_config(config: dict[str, Any], path: Path) -> None:
    """Raises ``UserError`` if a config from the file ``path`` has something else where a spec, the settings of a
    training, its seed or dtype should be; each may be missing."""
    fits: dict[str, Callable[[Any], bool]] = {
        **dict.fromkeys(("task", "rule", "training"), lambda value: isinstance(value, dict)),
        "seed": lambda value: type(value) is int and 0 <= value < 2**63,
        "dtype": lambda value: value in ("float32", "float64"),
    }
    counts = dict.fromkeys(("meta_steps", "horizon"), lambda value: type(value) is int and 0 < value <= LONGEST)
    for content, allowed in ((config, fits), (config.get("training"), counts)):
        for key, fit in allowed.items():
            if isinstance(content, dict) and key in content and not fit(content[key]):
                raise UserError(f"{path} is damaged ('{key}' is {content[key]!r:.50}): restore it, or train again")
