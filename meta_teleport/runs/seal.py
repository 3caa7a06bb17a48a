"""Seals: by them a user's own program knows again what it has written, and what somebody else put in its place.

A seal is the HMAC-SHA256 of the content under a key of 32 random bytes that never leaves the machine: it lies in
``$XDG_STATE_HOME/meta_teleport/key`` (``~/.local/state`` where that is not set), and only its owner can read it. Where
it can be neither read nor made nothing is sealed, and nothing is believed.
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
from functools import cache
from pathlib import Path
from typing import Any

BYTES = 32


def seal(content: Any) -> str | None:
    """The seal of JSON-able content, in hex; None where there is no key."""
    key = _key()
    return (
        None if key is None else hmac.new(key, json.dumps(content, sort_keys=True).encode(), hashlib.sha256).hexdigest()
    )


def is_sealed(content: Any, mark: Any) -> bool:
    """Whether ``mark`` is the seal of that content, made here."""
    own = seal(content)
    return own is not None and isinstance(mark, str) and mark.isascii() and hmac.compare_digest(own, mark)


@cache
def code_digest() -> str:
    """Of all sources of this package: what was computed by other ones is another result."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _key() -> bytes | None:
    path = Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()) / "meta_teleport/key"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            return _read(path)
        with os.fdopen(made, "wb") as file:
            file.write(key := secrets.token_bytes(BYTES))
    except (OSError, RuntimeError):
        return None
    return key


def _read(path: Path) -> bytes | None:
    """The key, if it is one that nobody else could have read or written."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        own = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
        key = file.read(BYTES + 1) if own else b""
    return key if len(key) == BYTES else None
