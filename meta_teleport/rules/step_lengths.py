"""Step lengths in natural units, and their decay with the steps."""

import torch
from torch import Tensor

LAST = 0.01


def fan_in(p: Tensor) -> int:
    """How many numbers meet in one output of a parameter ``(tasks, *shape)``; 1 for vectors. The natural unit of a
    step is ``1 / sqrt(fan_in)``, about the size of an entry at initialisation."""
    return p[0].numel() // p.shape[1] if p.ndim > 2 else 1


def linear_decay(t: Tensor, horizon: int) -> Tensor:
    """The factor of step lengths at step t: ``max(1 - t / horizon, 0.01)``, past it ``0.01 horizon / t``."""
    late = LAST * (horizon / t.clamp(min=1)).clamp(max=1)
    return torch.maximum(1 - t / horizon, late)
