"""Faults at file operations: the n-th one that a process does is its last, or fails, as real ones do.

Operations are counted where Python hands them to the system. A full disk and a folder that has become read-only stay
so; of the others one operation fails, and those after it do not. A power cut takes, beside the process, all that
nobody has put onto the disk: contents without fsync, entries of folders without fsync of the folder.
"""

import builtins
import errno
import fcntl
import io
import os
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = ("write", "pwrite", "ftruncate", "fsync", "replace", "mkdir", "unlink")
ERRORS = {"ENOSPC": errno.ENOSPC, "EROFS": errno.EROFS, "EIO": errno.EIO, "EMFILE": errno.EMFILE}
FAULTS = ("kill", "power", "MemoryError", *ERRORS)


class FaultyFiles:
    """Counts the operations of this process on files below ``folder`` from now on; the ``nth`` meets ``fault``, one of
    FAULTS, or "stop", which is none: the process waits there until it is told to go on."""

    def __init__(self, folder: Path, nth: int = 0, fault: str = "") -> None:
        self.folder, self.nth, self.fault, self.count = folder, nth, fault, 0
        self.disk = _Disk(folder) if fault == "power" else None
        for name in (*WRITING, "listdir", "open"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        fcntl.flock = self._counted("flock", fcntl.flock)
        builtins.open = io.open = self._counted("open", io.open)  # type: ignore[assignment]

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*arguments: Any, **named: Any) -> Any:
            if isinstance(arguments[0], str | Path) and self.folder not in Path(os.path.abspath(arguments[0])).parents:
                return real(*arguments, **named)
            self.count += 1
            if self._is_due(name, arguments):
                self._fail(name, arguments, real)
            done = real(*arguments, **named)
            if name == "fsync" and self.disk is not None:
                self.disk.keep(arguments[0])
            return done

        return operate

    def _is_due(self, name: str, arguments: tuple[Any, ...]) -> bool:
        if not self.fault or self.count < self.nth:
            return False
        if self.fault == "ENOSPC":
            return name in ("write", "pwrite")
        if self.fault == "EROFS":
            return name in WRITING or (name == "open" and arguments[1:2] != ("rb",) and bool(_flags(arguments) & 3))
        return self.count == self.nth

    def _fail(self, name: str, arguments: tuple[Any, ...], real: Callable[..., Any]) -> None:
        if name == "write" and self.fault in ("kill", "ENOSPC"):
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if self.disk is not None:
            self.disk.lose_the_rest()
        if self.fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        if self.fault in ("kill", "power"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "MemoryError":
            raise MemoryError
        raise OSError(ERRORS[self.fault], os.strerror(ERRORS[self.fault]))


def _flags(arguments: tuple[Any, ...]) -> int:
    return next((flags for flags in arguments[1:2] if isinstance(flags, int)), 0)


class _Disk:
    """What of a folder is on the disk: contents of files, and entries of folders, by inode."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.open, self.listdir = str(folder), os.open, os.listdir
        self.contents: dict[int, bytes] = {}
        self.entries: dict[int, dict[str, int]] = {}
        self.folders: set[int] = set()
        for where, _, names in os.walk(folder):
            for path in (where, *(f"{where}/{name}" for name in names)):
                self.keep(self.open(path, os.O_RDONLY))

    def keep(self, file: int) -> None:
        """Remembers what a file or folder has now; it stays open, so that no other one gets its inode."""
        path, inode = os.readlink(f"/proc/self/fd/{os.dup(file)}"), os.fstat(file).st_ino
        if os.path.isdir(path):
            found = {name: os.stat(f"{path}/{name}") for name in self.listdir(path)}
            self.entries[inode] = {name: status.st_ino for name, status in found.items()}
            self.folders |= {status.st_ino for status in found.values() if stat.S_ISDIR(status.st_mode)}
        else:
            self.contents[inode] = os.pread(self.open(f"/proc/self/fd/{file}", os.O_RDONLY), 2**30, 0)

    def lose_the_rest(self) -> None:
        """Brings the folder back to what is on the disk; of contents that are not, nothing is left."""
        os.rename(self.folder, f"{self.folder}.lost")
        self._make(os.stat(f"{self.folder}.lost").st_ino, Path(self.folder))
        shutil.rmtree(f"{self.folder}.lost", ignore_errors=True)

    def _make(self, inode: int, path: Path) -> None:
        path.mkdir()
        for name, other in self.entries.get(inode, {}).items():
            if other in self.folders:
                self._make(other, path / name)
            else:
                (path / name).write_bytes(self.contents.get(other, b""))
