"""The device that a command computes on."""

import torch

from meta_teleport.errors import UserError


def chosen(name: str) -> str:
    """The device for ``--device``; auto is CUDA where there is one. Raises ``UserError`` where CUDA is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device that torch can use: choose --device cpu (or auto)")
    return name


def described(device: str) -> str:
    """What a run folder calls it: CUDA with the name of the card."""
    return f"cuda ({torch.cuda.get_device_name()})" if device == "cuda" else device
