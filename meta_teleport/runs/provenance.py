"""Where numbers come from."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Where numbers come from: revision of the source (null outside a checkout), versions, machine, time."""
    names = ("meta-teleport", "torch", "numpy", "safetensors")
    return {
        **revision(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "platform": platform.platform(),
        "device": device,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def version(distribution: str) -> str | None:
    """The version of an installed distribution; None if there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def revision() -> dict[str, str | bool | None]:
    """The git revision that this package is checked out at, and whether its files differ from it."""
    here = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"revision": None, "dirty": None}
    status = git("status", "--porcelain", "--", ".")
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
