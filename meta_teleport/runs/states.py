"""The last three states of a run, so that one that went bad does not end it.

``training.safetensors`` is the newest, ``training.1.safetensors`` and ``training.2.safetensors`` those before it.
"""

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.runs.checkpoint import load_tensors, pack_tensors
from meta_teleport.runs.writing import replacing, write

NAMES = ("training.safetensors", "training.1.safetensors", "training.2.safetensors")


def state_paths(folder: Path) -> list[Path]:
    """The states that are there, the newest first."""
    return [folder / name for name in NAMES if os.path.lexists(folder / name)]


class State(NamedTuple):
    """A state as it was read; ``is_newest``: from the first of the files."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    is_newest: bool


def save_state(folder: Path, tensors: dict[str, Tensor], numbers: dict[str, Any], keep: bool) -> None:
    """Writes a state as the newest one, whole or not at all. ``keep``: the one that was the newest is kept, as are
    those before; else it is of the same meta-step, or bad, and replaced.

    Raises ``UserError`` if the folder cannot be written.
    """
    content, (newest, *_) = pack_tensors(tensors, numbers), (folder / name for name in NAMES)
    with replacing(newest) as new:
        write(new, content, os.O_TRUNC)
        for older, younger in ((NAMES[2], NAMES[1]), (NAMES[1], NAMES[0])) if keep else ():
            if os.path.lexists(folder / younger):
                os.replace(folder / younger, folder / older)


def load_newest(folder: Path, device: str | torch.device = "cpu") -> State | None:
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
        return State(tensors, numbers, path.name == NAMES[0])
    if faults:
        raise UserError(f"no saved state of {folder} can be read: {faults[0]}")
    return None
