"""One process at a time trains in a run folder.

The lock is the kernel's (``flock``) on a file in the folder: it ends with the process, however that ends, and the file
stays. What is in it says who holds the lock, or held it last.
"""

import errno
import fcntl
import json
import os
import socket
import warnings
from datetime import UTC, datetime
from pathlib import Path

from meta_teleport.errors import UserError
from meta_teleport.runs.files import opened

FILE = "lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""What file systems without locks answer."""
LONGEST = 300
"""Bytes of a lock's file that are read."""
_held: set[int] = set()


class Lock:
    """The lock of ``folder``, taken when this is made.

    Raises ``UserError`` that says who has it, if another one does, and where the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._file = -1
        path = folder / FILE
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
            _held.add(self._file)
            self._take(folder)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, _owner().encode(), 0)
            os.fsync(self._file)
        except OSError as error:
            self.release()
            raise UserError(f"{path} cannot be written ({error.strerror}): check space and permissions") from None
        except BaseException:
            self.release()
            raise

    def _take(self, folder: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            by = _described(os.pread(self._file, LONGEST, 0)) or "another process"
            raise UserError(f"{folder} is in use by {by}: wait for it to end, or choose another --out") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(f"{folder} lies on a file system without locks: train one run at a time in it", stacklevel=4)

    def release(self) -> None:
        """Gives the lock back; does nothing if that is done."""
        if self._file in _held:
            _held.discard(self._file)
            os.close(self._file)
        self._file = -1

    __del__ = release


def is_ours(folder: Path) -> bool:
    """Whether the file for the lock of a folder is one that a :class:`Lock` has made.

    Raises ``UserError`` if it cannot be read.
    """
    with opened(folder / FILE) as file:
        content = file.read(LONGEST + 1)
    return not content or _described(content) is not None


def _described(content: bytes) -> str | None:
    """Who holds a lock, or held it last, if the content of its file says so."""
    try:
        found = json.loads(content)
        return f"process {int(found['pid'])} on {str(found['host'])!r} since {str(found['since'])!r}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _owner() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n"


def _give_up() -> None:
    """In the child of a fork: a copy of the file would keep the lock when this process is gone."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_give_up)
