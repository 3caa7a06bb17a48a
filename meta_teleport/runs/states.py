"""The last three states of a run, so that one that went bad does not end it.

``training.safetensors`` is the newest, ``training.1.safetensors`` and ``training.2.safetensors`` those before it.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.runs.checkpoint import load_tensors, pack_tensors, read_header
from meta_teleport.runs.writing import replacing, write

NAMES = ("training.safetensors", "training.1.safetensors", "training.2.safetensors")


def state_paths(folder: Path) -> list[Path]:
    """The states that are there, the newest first."""
    return [folder / name for name in NAMES if os.path.lexists(folder / name)]


def save_state(folder: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Writes a state as the newest one, whole or not at all; those before it are kept, one per meta-step.

    Raises ``UserError`` if the folder cannot be written.
    """
    content, (newest, *_) = pack_tensors(tensors, numbers), (folder / name for name in NAMES)
    with replacing(newest) as new:
        write(new, content, os.O_TRUNC)
        if _meta_step(newest) not in (None, numbers["meta_step"]):
            for older, younger in ((NAMES[2], NAMES[1]), (NAMES[1], NAMES[0])):
                if os.path.lexists(folder / younger):
                    os.replace(folder / younger, folder / older)


def load_newest(folder: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest state that can be read; a warning says so where it is not the newest one. None if there is none.

    Raises ``UserError`` if none of those that are there can be read.
    """
    faults = []
    for path in state_paths(folder):
        try:
            tensors, numbers = load_tensors(path, device)
        except UserError as error:
            faults.append(str(error))
            continue
        if faults:
            warnings.warn(f"{faults[0]}; going on from {path.name}, meta-step {numbers.get('meta_step')}", stacklevel=3)
        return tensors, numbers
    if faults:
        raise UserError(f"no saved state of {folder} can be read: {faults[0]}")
    return None


def _meta_step(path: Path) -> int | None:
    try:
        return read_header(path).meta.get("meta_step")
    except UserError:
        return None
