"""What this installation can do: versions, compute devices, optional packages."""

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Iterator

import torch

from meta_teleport.runs.provenance import revision, version

PACKAGES = ("meta-teleport", "torch", "torchvision", "numpy", "safetensors", "jsonargparse", "tensorboard", "rich")


def diagnose() -> Iterator[tuple[str, str]]:
    """Pairs of a name and what was found."""
    for name in PACKAGES:
        yield name, version(name) or "not installed"
    yield "revision", _revision()
    yield "cpu threads", str(torch.get_num_threads())
    yield "cuda", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    yield "learn2learn", _optional("learn2learn")


def _revision() -> str:
    found = revision()
    return f"{found['revision']}{' with changes' if found['dirty'] else ''}" if found["revision"] else "not a checkout"


def _optional(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        return "not installed (only its own integration needs it)"
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(name)
    except Exception as error:
        return f"installed, but its import fails: {' '.join(str(error).split())}"
    return version(name) or "installed"
