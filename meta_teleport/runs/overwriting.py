"""Beginning a run anew in its folder: what a run writes is removed, and nothing else ever is."""

import json
import os
import re
from pathlib import Path

from meta_teleport.errors import UserError

FILES = re.compile(
    r"config\.json|provenance\.json|metrics\.jsonl|(rule|training)\.safetensors|tuning\.json"
    r"|evaluation(-[\w.-]+-seed\d+-[0-9a-f]{8})?\.(json|png)"
)
"""Names of the files of a run, its evaluations and the settings that were tuned for these."""
EVENTS, EVENT_FILES = "tensorboard", re.compile(r"events\.out\.tfevents\.\S+")


def clear(folder: Path) -> None:
    """Removes the files of a run from its folder. Files of others stay, and so does what links lead to.

    Raises ``UserError``, with nothing removed, for a folder that is none of a run, and where :func:`events_of` does.
    """
    try:
        names = sorted(os.listdir(folder), key=lambda name: name == "config.json")  # last: it says what the folder is
        own = [folder / name for name in names if FILES.fullmatch(name)]
        if (events := events_of(folder)).is_dir():
            own = [events / name for name in os.listdir(events) if EVENT_FILES.fullmatch(name)] + own
        if not (_is_run(folder) or {path.name for path in own if path.parent == folder} | {EVENTS} >= set(names)):
            raise UserError(f"{folder} is no run folder, and --overwrite removes only what a run wrote: choose another")
        for path in own:
            if path.is_dir() and not path.is_symlink():
                raise UserError(f"{path} is a folder, which no run has made: choose another --out")
        for path in own:
            path.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be cleared ({error.strerror}): check its permissions") from None


def events_of(folder: Path) -> Path:
    """Where a run keeps the events of TensorBoard. Raises ``UserError`` if a link leads elsewhere from there."""
    events = folder / EVENTS
    if events.is_symlink():
        raise UserError(f"{events} is a link to elsewhere, and nothing is written outside a run: remove it")
    return events


def _is_run(folder: Path) -> bool:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"format", "rule", "training"} <= content.keys()
