"""What a size-free rule knows of a task as a whole: how far the loss has come, how steep it is, how late it is.

Five numbers per task, the same for every network:

    log(L / L_0) / 10,  tanh(log(L / L_previous)),  log(|G| / |G_0|) / 10,  log(1 + t) / 5,  min(t / horizon, 1).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from meta_teleport.rules.rule import Observation

FEATURES = 5


class Memory(NamedTuple):
    """Loss and gradient norm at the first step that was seen, and the loss of the last one, each ``(tasks,)``; nan
    before them."""

    first: Tensor
    norm: Tensor
    last: Tensor


def no_memory(like: Tensor) -> Memory:
    """The memory before the first step, for as many tasks as ``like`` ``(tasks, ...)`` has."""
    blank = like.new_full(like.shape[:1], torch.nan)
    return Memory(blank, blank, blank)


def read_task_features(
    observation: Observation, sizes: Tensor, memory: Memory, horizon: int, time_scale: float
) -> tuple[Tensor, Memory]:
    """The features ``(tasks, 5)`` and the next memory; ``sizes`` are the norms of the gradients, ``(tasks,
    parameters)``, and t counts steps divided by ``time_scale``."""
    loss, size = observation.loss, sizes.norm(dim=1)
    start = (observation.step == 0) | memory.first.isnan()
    first, steep = torch.where(start, loss, memory.first), torch.where(start, size, memory.norm)
    last = torch.where(start, loss, memory.last)
    step = observation.step.to(loss.dtype) / time_scale
    features = [
        log_ratio(loss, first) / 10,
        log_ratio(loss, last).tanh(),
        log_ratio(size, steep) / 10,
        step.log1p() / 5,
        (step / horizon).clamp(max=1),
    ]
    return torch.stack(features, dim=1), Memory(first, steep, loss)


def log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """``log(a / b)`` of numbers that are not negative; zeros count as the smallest normal number."""
    tiny = torch.finfo(a.dtype).tiny
    return a.clamp(min=tiny).log() - b.clamp(min=tiny).log()
