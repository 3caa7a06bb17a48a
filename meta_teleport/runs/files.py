"""Reading files that somebody else may have made: regular ones, of a size that fits what they are to hold.

A name can stand for a device that never ends, a pipe that nobody writes to, a hole of a hundred gigabytes, or a
gigabyte of zeros in a few packed kilobytes. All of these are refused by what the file system and the file's own header
say, before anything is read.
"""

import json
import os
import pickle
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from meta_teleport.errors import UserError, nearest

MEGABYTE = 2**20
TEXT, CONFIG = 32 * MEGABYTE, MEGABYTE // 8
"""The largest file of results or metrics that is read, and the largest configuration."""
VALUES = 1_000_000
"""How many values a JSON text may hold: the shortest take twenty times their size in memory."""
TENSORS = 4096 * MEGABYTE
HEADER = 4 * MEGABYTE
"""The largest header of a file of tensors."""
PACKED, BLOCK = 100, 512
"""By how much the content of a compressed archive may exceed its file, and a file its blocks on the disk; the unit in
which those are counted."""


@contextmanager
def opened(path: Path, limit: int = TENSORS) -> Iterator[BinaryIO]:
    """A regular file of at most ``limit`` bytes, to be read.

    Raises ``UserError`` for what is missing, cannot be read, is no regular file, is larger, or is not on the disk.
    """
    try:
        file = open(path, "rb", opener=_open)  # noqa: SIM115  (closed below)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}{nearest(path.name, names_beside(path))}: check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} cannot be read ({reason}): check the path and its permissions") from None
    with file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path} is a device or a pipe, not a regular file: give a file")
        if found.st_size > limit:
            raise UserError(
                f"{path} has {found.st_size / MEGABYTE:,.0f} MB, and at most {limit / MEGABYTE:,.0f} MB are read here: "
                "check that it is the right file"
            )
        if found.st_size > max(PACKED * BLOCK * getattr(found, "st_blocks", found.st_size), MEGABYTE):
            raise UserError(f"{path} is a hole, {found.st_size / MEGABYTE:,.0f} MB of nothing: check the path")
        try:
            yield file
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from None


UNPICKLED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
    ("collections", "defaultdict"),
    ("collections", "OrderedDict"),
    ("builtins", "list"),
    ("builtins", "set"),
}
"""What a pickle of plain data and arrays names."""


def names_beside(path: Path) -> list[str]:
    """The names of what lies in the folder where ``path`` should be."""
    return [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe that nobody writes to would be waited for


def read_text(path: Path, limit: int = TEXT) -> str:
    """A file of text, in UTF-8. Raises ``UserError`` where :func:`opened` does, and for other bytes."""
    with opened(path, limit) as file:
        try:
            return file.read().decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path} is cut off or no text: restore it") from None


def parse_json(text: str, path: Path) -> Any:
    """What JSON from the file ``path`` says.

    Raises ``UserError`` for what is none, is nested too deep to be read, or holds more than ``VALUES`` values.
    """
    if sum(map(text.count, ",[{")) > VALUES:
        raise UserError(f"{path} holds more than {VALUES:,} values: check that it is the right file")
    try:
        return json.loads(text)
    except ValueError:
        raise UserError(f"{path} is cut off or not JSON: restore it, or train again") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deep to be read: restore it, or train again") from None


def read_arrays(path: Path, keys: Collection[str]) -> dict[str, np.ndarray]:
    """Those arrays of an ``.npz`` file that are among the ``keys``. Nothing is unpickled.

    Raises ``UserError`` where :func:`opened` does, for what is damaged or no plain array, and for an archive whose
    content would be more than ``PACKED`` times its file.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError):
            raise UserError(f"{path} is cut off or no .npz file: copy it again") from None
        try:
            with archive:
                members = [member for member in archive.infolist() if Path(member.filename).stem in keys]
                total = sum(member.file_size for member in members)
                if total > max(PACKED * size, MEGABYTE):
                    raise UserError(
                        f"{path} has {size / MEGABYTE:,.1f} MB and would unpack to {total / MEGABYTE:,.0f} MB: save it "
                        "by numpy.savez"
                    )
                return {Path(m.filename).stem: _array(archive.open(m), m.file_size) for m in members}
        except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, MemoryError) as error:
            raise UserError(f"{path} is damaged ({' '.join(str(error).split())}): copy it again") from None
        except ValueError as error:
            raise UserError(
                f"{path} holds something else than plain arrays ({' '.join(str(error).split())}): save them by "
                "numpy.savez"
            ) from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy.core", "numpy._core"), name) not in UNPICKLED:
            raise UserError(
                f"{self.path} names {module}.{name}, and only plain data and arrays are unpickled: get another copy"
            )
        return super().find_class(module, name)


def require_plain_pickle(path: Path) -> None:
    """Raises ``UserError`` unless a pickle that somebody else will load holds plain data and arrays alone.

    Raises what ``pickle`` raises for one that is damaged.
    """
    with opened(path) as file:
        _Unpickler(file, path).load()


def _array(stream: IO[bytes], size: int) -> np.ndarray:
    """The array in a member of an archive that has ``size`` bytes, if it says that it fits in there."""
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(stream)
    if version not in read:
        raise ValueError(f"arrays of version {version}")
    shape, fortran, dtype = read[version](stream)
    count = prod(shape)
    if dtype.hasobject:
        raise ValueError("objects, which would be unpickled")
    if min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise ValueError(f"an array of shape {shape} in {size} bytes")
    values = np.frombuffer(stream.read(count * dtype.itemsize), dtype, count)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)
