"""The run folder: what was asked for, what it ran on, and what came out.

::

    config.json            family, rule, training, seed, dtype: enough to build everything again
    provenance.json        revision, versions, platform, device, time
    metrics.jsonl          one line per logged meta-step
    tensorboard/           the same scalars as events
    training.safetensors   the state of the run, to resume from
    rule.safetensors       the rule, to load and evaluate
"""

import json
import math
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from meta_teleport.errors import UserError, nearest
from meta_teleport.runs.checkpoint import make_folder, write_atomically
from meta_teleport.runs.files import CONFIG, TEXT, names_beside, parse_json, read_text
from meta_teleport.runs.overwriting import clear, events_of

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
        self._writer: Any = None

    @classmethod
    def create(cls, folder: str | Path, config: dict[str, Any], device: str = "cpu", overwrite: bool = False) -> "Run":
        """A new folder with config.json and provenance.json. With ``overwrite`` what another run has written there is
        removed. Raises ``UserError`` if there is something in it, or what is there is no run's."""
        folder = Path(os.path.expanduser(folder))
        if folder.is_dir() and any(folder.iterdir()):
            if not overwrite:
                raise UserError(
                    f"folder {folder} is not empty: choose another --out, go on with it by --resume, or begin anew by "
                    "--overwrite, which removes what a run wrote and nothing else"
                )
            clear(folder)
        make_folder(folder)
        run = cls(folder, {})
        write_json(folder / "provenance.json", provenance(device))
        run.update({"format": FORMAT, **config})
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """The run in ``folder``.

        Raises ``UserError`` if it is missing, not a run folder, cut off, or of another format.
        """
        folder = Path(os.path.expanduser(folder))
        if not folder.is_dir():
            near = nearest(folder.name, names_beside(folder))
            make = f"make one by: train --out {folder}"
            raise UserError(f"there is no run folder {folder}{near}: check the path, or {make}")
        path = folder / "config.json"
        if not path.is_file():
            raise UserError(f"{folder} is not a run folder (no config.json in it): give the --out of a training run")
        config = read_json(path, CONFIG)
        check_format(config, path)
        check_config(config, path)
        missing = [key for key in ("task", "rule", "training", "seed", "dtype") if key not in config]
        if missing:
            raise UserError(f"{path} is damaged (no '{missing[0]}' in it): restore it, or train again")
        return cls(folder, config)

    @property
    def rule_path(self) -> Path:
        """The rule as :func:`meta_teleport.learned.serialization.save` writes it."""
        return self.folder / "rule.safetensors"

    @property
    def state_path(self) -> Path:
        """What resuming needs."""
        return self.folder / "training.safetensors"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per line: meta_step and the metrics of that meta-step."""
        return self.folder / "metrics.jsonl"

    def update(self, config: dict[str, Any]) -> None:
        """Replaces the config, on disk too."""
        self.config = config
        write_json(self.folder / "config.json", config)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Appends the metrics of one meta-step to metrics.jsonl and TensorBoard; what is not finite becomes null."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"meta_step": step, **row}) + "\n")
        for name, value in metrics.items():
            self._events(step).add_scalar(name, value, step)

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl; a last line that a crash has cut off is left out."""
        rows = []
        for line in read_text(self.metrics_path).splitlines() if self.metrics_path.exists() else ():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not (isinstance(row, dict) and type(row.get("meta_step")) is int):
                break
            rows.append(row)
        return rows

    def rewind(self, step: int) -> None:
        """Drops the metrics of meta-steps after ``step``, which a resumed run will compute again."""
        kept = [row for row in self.metrics() if row["meta_step"] <= step]
        write_atomically(self.metrics_path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self.close()
        self._events(step + 1)

    def close(self) -> None:
        """Flushes the TensorBoard events."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _events(self, step: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(events_of(self.folder)), purge_step=step)
        return self._writer


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


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Where numbers come from: revision of the source (null outside a checkout), versions, machine, time."""
    names = ("meta-teleport", "torch", "numpy", "safetensors")
    return {
        **revision(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "platform": platform.platform(),
        "device": device,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def version(distribution: str) -> str | None:
    """The version of an installed distribution; None if there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def revision() -> dict[str, str | bool | None]:
    """The git revision that this package is checked out at, and whether its files differ from it."""
    here = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"revision": None, "dirty": None}
    status = git("status", "--porcelain", "--", ".")
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
