"""The device that a command computes on."""

import re

import torch

from meta_teleport.errors import UserError


def chosen(name: str) -> str:
    """The device for ``--device``; auto is CUDA where there is one. Raises ``UserError`` where the device is not there,
    and for a name that is none."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("there is no MPS device that torch can use: choose --device cpu (or auto)")
    if re.fullmatch(r"cuda(:\d+)?", name):
        if not torch.cuda.is_available():
            raise UserError("there is no CUDA device that torch can use: choose --device cpu (or auto)")
        number, count = int(name.partition(":")[2] or 0), torch.cuda.device_count()
        if number >= count:
            raise UserError(f"there is no {name}, the last CUDA device is cuda:{count - 1}: choose one of them")
    elif name not in ("cpu", "mps"):
        raise UserError(f"unknown device '{name}': choose auto, cpu, cuda, cuda:1 (by its number) or mps")
    return name


def described(device: str) -> str:
    """What a run folder calls it: CUDA with the name of the card."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device
