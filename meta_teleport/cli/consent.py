"""What only the person at the keyboard decides, never a file: downloads, folders elsewhere, removals."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_teleport.errors import UserError
from meta_teleport.registry import resolve
from meta_teleport.specs import CLASS_PATH, INIT_ARGS
from meta_teleport.tasks.family import TaskFamily

DOWNLOAD, FAMILIES = "download", "families"


def allows_downloads(argv: Sequence[str]) -> bool:
    """Whether what was typed speaks of downloads: ``--download``, or an argument of the family."""
    values = (f"{flag} {value}" for flag, value in zip(argv, (*argv[1:], ""), strict=True))
    return "--download" in argv or any(re.match(r"--task\b.*\bdownload\b", both) for both in values)


def without_downloads(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a family that downloads nothing, nor do its members."""
    cls, arguments = resolve(str(spec[CLASS_PATH]), TaskFamily), dict(spec.get(INIT_ARGS) or {})
    if DOWNLOAD in inspect.signature(cls).parameters:
        arguments[DOWNLOAD] = False
    if isinstance(members := arguments.get(FAMILIES), list | tuple):
        arguments[FAMILIES] = [
            without_downloads(member) if isinstance(member, Mapping) else member for member in members
        ]
    return {**spec, INIT_ARGS: arguments}


def require_downloads_inside(spec: Mapping[str, Any]) -> None:
    """Raises ``UserError`` if a family that a file describes would download to a place outside the working directory,
    or one of its members would."""
    arguments = spec.get(INIT_ARGS) or {}
    if arguments.get(DOWNLOAD) and not _inside(str(arguments.get("folder", "."))):
        raise UserError(
            f"a file asks for a download to {arguments['folder']}, outside the working directory: name that folder by "
            "--task.folder, or change the file"
        )
    members = arguments.get(FAMILIES)
    for member in members if isinstance(members, list | tuple) else ():
        if isinstance(member, Mapping):
            require_downloads_inside(member)


def require_typed(files: Sequence[Mapping[str, Any]], argv: Sequence[str], typed_out: str | None) -> None:
    """Raises ``UserError`` if config ``files`` ask for a run folder outside the working directory, or to overwrite one,
    and that was not typed."""
    for content in files:
        if content.get("overwrite") and "--overwrite" not in argv:
            raise UserError("a config file says overwrite, which is for you to say: give --overwrite, or leave it out")
        out = content.get("out")
        if typed_out is None and out is not None and not _inside(str(out)):
            raise UserError(f"a config file sets out to {out}, outside the working directory: give --out yourself")


def _inside(place: str) -> bool:
    try:
        return Path(place).expanduser().resolve().is_relative_to(Path.cwd().resolve())
    except (OSError, ValueError, RuntimeError):
        return False
