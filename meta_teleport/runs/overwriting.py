"""Which files in a folder are a run's: beginning anew removes these, and nothing else ever."""

import json
import os
import re
from pathlib import Path

from meta_teleport.errors import UserError
from meta_teleport.runs import lock, states
from meta_teleport.runs.writing import meant_for

TRAINING = re.compile(
    r"config\.json|provenance\.json|metrics\.jsonl|rule\.safetensors|" + "|".join(map(re.escape, states.NAMES))
)
"""Names of the files that training writes, which it does alone."""
FILES = re.compile(
    rf"{TRAINING.pattern}|{lock.FILE}|tuning\.json|evaluation(-[\w.-]+-seed\d+-[0-9a-f]{{8}})?\.(json|png)"
)
"""Names of the files of a run, its evaluations and the settings that were tuned for these."""
EVENTS, EVENT_FILES = "tensorboard", re.compile(r"events\.out\.tfevents\.\S+")
REPLACED = ("config.json", "provenance.json", lock.FILE)
"""What the next run puts others in the place of: a folder without a config would be nobody's."""


def is_vacant(folder: Path) -> bool:
    """Whether there is nothing in a folder, or no such folder, or only what a run leaves that was stopped before its
    config was written.

    Raises ``UserError`` if it cannot be read.
    """
    try:
        found = set(os.listdir(folder)) if folder.is_dir() else set()
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): check its permissions") from None
    names = {name for name in found if not TRAINING.fullmatch(meant_for(name))}
    return not found or (lock.FILE in names and names <= {lock.FILE, "provenance.json"} and lock.is_ours(folder))


def clear(folder: Path) -> None:
    """Removes the files of a run from its folder, but for those in ``REPLACED``. Files of others stay, and so does what
    links lead to.

    The states go first, then the rule: where this is interrupted the run can be resumed as far as it is there, or is
    refused. Raises ``UserError`` as :func:`own_files` does, and if a file cannot be removed.
    """
    own = [path for path in own_files(folder) if path.name not in REPLACED]
    try:
        for path in sorted(own, key=lambda path: (path.name not in states.NAMES, path.name != "rule.safetensors")):
            path.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be cleared ({error.strerror}): check its permissions") from None


def own_files(folder: Path) -> list[Path]:
    """The files of the run in a folder.

    Raises ``UserError`` for a folder that is none of a run or cannot be read, and where :func:`events_of` does.
    """
    try:
        names = sorted(os.listdir(folder))
        own = [folder / name for name in names if FILES.fullmatch(name)]
        if (events := events_of(folder)).is_dir():
            own += [events / name for name in os.listdir(events) if EVENT_FILES.fullmatch(name)]
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): check its permissions") from None
    if not (_is_run(folder) or {path.name for path in own if path.parent == folder} | {EVENTS} >= set(names)):
        raise UserError(f"{folder} is no run folder, and --overwrite removes only what a run wrote: choose another")
    for path in own:
        if path.is_dir() and not path.is_symlink():
            raise UserError(f"{path} is a folder, which no run has made: choose another --out")
    return own


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
