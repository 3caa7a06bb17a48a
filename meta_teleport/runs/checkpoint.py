"""Tensors on disk: one safetensors file with JSON beside the tensors, written whole or not at all.

Nothing here unpickles, so that a file from a stranger can hold wrong numbers but no program. A checksum over names,
numbers and JSON tells whether they are those that were written.
"""

import hashlib
import json
import os
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.runs.files import HEADER, opened
from meta_teleport.runs.writing import write_atomically

HEADER_BYTES = 8
METADATA = "__metadata__"
DIMENSIONS, LARGEST = 64, 2**63
"""Bounds on the shape of a tensor: torch's own."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Header(NamedTuple):
    """What a file of tensors says of itself: the JSON beside them, their shapes and dtypes, and their checksum if it
    has one."""

    meta: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    checksum: str | None


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Writes ``tensors`` (any device, dtype, shape) and the JSON-able ``meta`` into one file, whose bytes follow from
    them.

    Raises ``UserError`` if the folder cannot be written; an older file of that name is then left as it was.
    """
    write_atomically(Path(path), pack_tensors(tensors, meta))


def pack_tensors(tensors: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    """The content of the file that :func:`save_tensors` writes."""
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta)
    return _in_order(safetensors.torch.save(copies, {"meta": text, "sha256": _checksum(copies, text)}))


def read_header(path: Path) -> Header:
    """What a file that :func:`save_tensors` wrote says of itself, without reading the tensors.

    Raises ``UserError`` for a file that is missing, cut off, or something else.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEADER_BYTES + 1)
        length = int.from_bytes(head[:HEADER_BYTES], "little")
        if len(head) < HEADER_BYTES + 1:
            raise _cut_off(path)
        if head[HEADER_BYTES:] != b"{" or length > HEADER:
            raise _foreign(path)
        if size < HEADER_BYTES + length:
            raise _cut_off(path)
        text = b"{" + file.read(length - 1)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != METADATA}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        shapes = {name: _shape(entry) for name, entry in entries.items()}
        dtypes = {name: DTYPES[entry["dtype"]] for name, entry in entries.items()}
        fits = all(prod(shapes[name]) * dtypes[name].itemsize == _length(entry) for name, entry in entries.items())
        beside = dict(header[METADATA])
        meta = dict(json.loads(beside.pop("meta")))
        checksum = beside.pop("sha256", None)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError):
        raise _foreign(path) from None
    if beside or not fits:
        raise _foreign(path)
    if end != size - HEADER_BYTES - length:
        raise _cut_off(path)
    return Header(meta, shapes, dtypes, checksum)


def _shape(entry: dict[str, Any]) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in entry["shape"])
    if len(sizes) > DIMENSIONS or not all(0 <= n < LARGEST for n in sizes):
        raise ValueError
    return sizes


def _length(entry: dict[str, Any]) -> int:
    first, last = entry["data_offsets"]
    return int(last) - int(first)


def load_tensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, bitwise as saved, and the ``meta`` of :func:`save_tensors`.

    Raises ``UserError`` for a file that is missing, cut off, changed since it was written, or not one that
    :func:`save_tensors` wrote.
    """
    path = Path(path)
    header = read_header(path)
    with opened(path) as file:
        content = file.read()
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise _cut_off(path) if "ncomplete" in str(error) else _foreign(path) from None
    if header.checksum not in (None, _checksum(tensors, json.dumps(header.meta))):
        raise UserError(f"{path} is damaged (its checksum is another): copy it again, or go back to a whole checkpoint")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, header.meta


def _in_order(content: bytes) -> bytes:
    """A safetensors file with what stands beside the tensors by name: the library writes that in any order."""
    length = int.from_bytes(content[:HEADER_BYTES], "little")
    header = json.loads(content[HEADER_BYTES : HEADER_BYTES + length])
    header[METADATA] = dict(sorted(header[METADATA].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_BYTES)
    return len(text).to_bytes(HEADER_BYTES, "little") + text + content[HEADER_BYTES + length :]


def _checksum(tensors: dict[str, Tensor], meta: str) -> str:
    """SHA-256 over the JSON and, in the order of their names, what the tensors are and hold."""
    digest = hashlib.sha256(meta.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _cut_off(path: Path) -> UserError:
    return UserError(f"{path} is cut off: copy it again, or go back to a whole checkpoint")


def _foreign(path: Path) -> UserError:
    return UserError(
        f"{path} is not a checkpoint of meta_teleport: only its safetensors files are read, pickles never are"
    )
