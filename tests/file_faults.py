"""Faults at file operations: the n-th one that a process does is the last, or fails, as real ones do.

Operations are counted where Python hands them to the system. A full disk and a folder that has become read-only stay
so; of the others one operation fails, and those after it do not. A power cut takes with it, beside the process, all
that nobody has put onto the disk: contents without fsync, entries of folders without fsync of the folder.
"""

import builtins
import errno
import fcntl
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = ("write", "pwrite", "ftruncate", "fsync", "replace", "rename", "mkdir", "unlink", "remove")
COUNTED = (*WRITING, "open", "listdir", "scandir", "read")
ERRORS = {"ENOSPC": errno.ENOSPC, "EROFS": errno.EROFS, "EIO": errno.EIO, "EMFILE": errno.EMFILE}
LASTING = ("ENOSPC", "EROFS")
FAULTS = ("kill", "power", "MemoryError", *ERRORS)


class FaultyFiles:
    """Counts the file operations of this process from now on, and has the ``nth`` fail by ``fault``; ``folder`` is
    what a power cut is simulated for."""

    def __init__(self, folder: Path, nth: int = 0, fault: str = "") -> None:
        self.count, self.nth, self.fault = 0, nth, fault
        self.folder, self.disk = folder, _Disk(folder)
        self.names: list[str] = []
        for name in COUNTED:
            setattr(os, name, self._counted(name, getattr(os, name)))
        fcntl.flock = self._counted("flock", fcntl.flock)  # type: ignore[assignment]
        builtins.open = io.open = self._counted("open", io.open)  # type: ignore[assignment]

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*arguments: Any, **named: Any) -> Any:
            if name == "open" and not self._here(arguments[0]):
                return real(*arguments, **named)
            self.count += 1
            self.names.append(name)
            if self._due(name, arguments):
                self._fail(name, arguments, real)
            done = real(*arguments, **named)
            if name == "fsync":
                self.disk.keep(arguments[0])
            return done

        return operate

    def _here(self, path: Any) -> bool:
        """Modules, devices and the like are opened as always."""
        return str(self.folder) in os.path.abspath(os.fspath(path)) if isinstance(path, str | Path) else False

    def _due(self, name: str, arguments: tuple[Any, ...]) -> bool:
        if not self.fault or self.count < self.nth:
            return False
        if self.fault not in LASTING:
            return self.count == self.nth
        creates = name == "open" and any(isinstance(flags, int) and flags & os.O_CREAT for flags in arguments[1:2])
        return name in WRITING[:2] if self.fault == "ENOSPC" else name in WRITING or creates

    def _fail(self, name: str, arguments: tuple[Any, ...], real: Callable[..., Any]) -> None:
        if name == "write" and self.fault in ("kill", "ENOSPC"):
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if self.fault == "power":
            self.disk.lose_the_rest()
        if self.fault in ("kill", "power"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "MemoryError":
            raise MemoryError
        raise OSError(ERRORS[self.fault], os.strerror(ERRORS[self.fault]))


class _Disk:
    """What of a folder is on the disk: contents by inode, and names with their inodes by folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.contents: dict[int, bytes] = {}
        self.entries: dict[str, dict[str, int]] = {}
        self.open, self.listdir, self.fstat, self.stat = io.open, os.listdir, os.fstat, os.stat
        self.unlink = os.unlink
        if folder.exists():
            for where, _, names in os.walk(folder):
                self.entries[where] = self._inodes(where)
                for name in names:
                    with self.open(f"{where}/{name}", "rb") as file:
                        self.contents[self.stat(f"{where}/{name}").st_ino] = file.read()

    def keep(self, file: int) -> None:
        """Remembers what a file or folder that is open as ``file`` has now."""
        path = os.readlink(f"/proc/self/fd/{file}")
        if os.path.isdir(path):
            self.entries[path] = self._inodes(path)
        else:
            with self.open(f"/proc/self/fd/{file}", "rb") as same:
                self.contents[self.fstat(file).st_ino] = same.read()

    def lose_the_rest(self) -> None:
        """Brings the folder back to what is on the disk: files never synced are there, empty."""
        laid = {where: {name: self.contents.get(i, b"") for name, i in self._files(where)} for where in self.entries}
        for where, _, names in os.walk(self.folder):
            for name in names:
                self.unlink(f"{where}/{name}")
        for where, files in laid.items():
            for name, content in files.items():
                if os.path.isdir(where) and self._reachable(where):
                    with self.open(f"{where}/{name}", "wb") as file:
                        file.write(content)

    def _files(self, where: str) -> list[tuple[str, int]]:
        return [(name, inode) for name, inode in self.entries[where].items() if not os.path.isdir(f"{where}/{name}")]

    def _reachable(self, where: str) -> bool:
        """Whether the folder's own name is on the disk."""
        if Path(where) == self.folder.parent:
            return False
        above, name = os.path.split(where)
        return name in self.entries.get(above, {}) or self.stat(where).st_ino in self.entries.get(above, {}).values()

    def _inodes(self, where: str) -> dict[str, int]:
        return {name: self.stat(f"{where}/{name}").st_ino for name in self.listdir(where)}
