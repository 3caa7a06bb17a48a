"""Tensors on disk: one safetensors file with JSON beside the tensors, written whole or not at all.

Nothing here unpickles, so that a file from a stranger can hold wrong numbers but no program.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from meta_teleport.errors import UserError, nearest

HEADER_BYTES = 8


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Writes ``tensors`` (any device, dtype, shape) and the JSON-able ``meta`` into one file.

    Raises ``UserError`` if the folder cannot be written; an older file of that name is then left as it was.
    """
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_atomically(Path(path), safetensors.torch.save(copies, {"meta": json.dumps(meta)}))


def load_tensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, bitwise as saved, and the ``meta`` of :func:`save_tensors`.

    Raises ``UserError`` for a file that is missing, cut off, or not one that :func:`save_tensors` wrote.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}{nearest(path.name, names_beside(path))}: check the path") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from None
    header = _header(path, content)
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise _cut_off(path) if "ncomplete" in str(error) else _foreign(path) from None
    try:
        meta = dict(json.loads(header["__metadata__"]["meta"]))
    except (KeyError, TypeError, ValueError):
        raise _foreign(path) from None
    return {name: tensor.to(device) for name, tensor in tensors.items()}, meta


def names_beside(path: Path) -> list[str]:
    """The names of what lies in the folder where ``path`` should be."""
    return [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []


def make_folder(folder: Path) -> None:
    """Makes a folder where there is none. Raises ``UserError`` if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be made ({error.strerror}): choose another") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, finds the old one or the new one, never a part.

    Raises ``UserError`` if the folder cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): check space and permissions") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _header(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON header that a safetensors file starts with, after its length as 8 bytes."""
    size = int.from_bytes(content[:HEADER_BYTES], "little")
    if len(content) < HEADER_BYTES + 1:
        raise _cut_off(path)
    if content[HEADER_BYTES : HEADER_BYTES + 1] != b"{":
        raise _foreign(path)
    if len(content) < HEADER_BYTES + size:
        raise _cut_off(path)
    try:
        header = json.loads(content[HEADER_BYTES : HEADER_BYTES + size])
    except ValueError:
        raise _foreign(path) from None
    return header if isinstance(header, dict) else {}


def _cut_off(path: Path) -> UserError:
    return UserError(f"{path} is cut off: copy it again, or go back to a whole checkpoint")


def _foreign(path: Path) -> UserError:
    return UserError(
        f"{path} is not a checkpoint of meta_teleport: only its safetensors files are read, pickles never are"
    )
