"""The folder that a script writes to: made first, so that a run of hours does not end at a folder that is not there."""

from argparse import ArgumentTypeError
from pathlib import Path

from meta_teleport.errors import UserError


def make_folder(path: Path) -> Path:
    """The folder, made with all above it if it is not there. Raises ``UserError`` where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {path} cannot be made ({error.strerror}): choose another --out") from None
    return path


def output_folder(path: str) -> Path:
    """The same as the ``type`` of an argument of argparse, which makes the folder as soon as the line is read. Its
    default is to be a string, as argparse applies the type to strings alone."""
    try:
        return make_folder(Path(path))
    except UserError as error:
        raise ArgumentTypeError(str(error)) from None
