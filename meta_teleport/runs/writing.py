"""Writing so that a crash, a cut of the power, a full disk or a reader finds the old or the new, never a part.

New content goes into a file under a name that cannot be guessed, which must not be there yet, onto the disk, and then
into its place by one renaming. A folder's entries are part of its content: they go onto the disk as well.
"""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meta_teleport.errors import UserError

LEFT_OVER = re.compile(r"\.(.+)\.(?:[0-9a-f]{16}(\.\w+)|[a-z0-9_]{8})")
"""Names of files that were to take the place of others: this version's, and version 0.1's."""


def make_folder(folder: Path) -> None:
    """Makes a folder where there is none. Raises ``UserError`` if that is not possible."""
    try:
        missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync(made.parent)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be made ({error.strerror}): choose another") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, finds the old one or the new one, never a part.

    Raises ``UserError`` if the folder cannot be written.
    """
    with replacing(path) as new:
        write(new, content, os.O_TRUNC)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new, empty file, to be filled: it takes the place of ``path`` if what is done with it raises nothing, and is
    removed if something does.

    Raises ``UserError`` if the folder cannot be written.
    """
    new = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
    try:
        try:
            write(new, b"", os.O_CREAT | os.O_EXCL)
            yield new
            sync(new)
            os.replace(new, path)
        except BaseException:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): check space and permissions") from None


def append(path: Path, content: bytes) -> None:
    """Adds to the end of a file, which is made if there is none; a crash may leave a part of ``content`` there.

    Raises ``UserError`` if the file cannot be written.
    """
    try:
        write(path, content, os.O_CREAT | os.O_APPEND)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): check space and permissions") from None


def write(path: Path, content: bytes, flags: int) -> None:
    """Writes all of ``content`` into a file that is opened with ``flags``, through no link. Raises ``OSError``."""
    file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file, rest) :]
    finally:
        os.close(file)


def sync(path: Path) -> None:
    """Puts a file, or the entries of a folder, onto the disk. Raises ``OSError``; folders of file systems that cannot
    do that are left to these."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(file)


def meant_for(name: str) -> str:
    """The name of the file that one called ``name`` was to take the place of; empty if that is no such file."""
    found = LEFT_OVER.fullmatch(name)
    return found[1] + (found[2] or "") if found else ""


def remove_left_overs(folder: Path, names: re.Pattern[str]) -> None:
    """Removes what interrupted writing of the files called ``names`` has left in a folder, where no one writes them.

    Raises ``UserError`` if that is not possible.
    """
    try:
        for name in os.listdir(folder):
            if names.fullmatch(meant_for(name)):
                (folder / name).unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be cleared ({error.strerror}): check its permissions") from None
