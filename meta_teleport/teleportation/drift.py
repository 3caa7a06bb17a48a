"""Drift: how much a teleport moves what it should leave alone.

In exact arithmetic an exact teleport has none. In floating point the data-dependent action (a) writes large weights
where the inputs are nearly dependent, and their rounding moves the loss: by about eps cond(X), which float32 cannot
always afford. Such a teleport is undone, task by task, and counted.
"""

import torch
from torch import Tensor

from meta_teleport.params import Params, per_task, where
from meta_teleport.symmetry.symmetry import Symmetry

LIMIT = 1e-4


def loss_drift(before: Tensor, after: Tensor) -> Tensor:
    """``|L(g.w) - L(w)| / max(|L(w)|, 1)`` from the losses ``(tasks,)`` before and after a teleport."""
    return (after - before).abs() / before.abs().clamp(min=1)


def output_drift(before: Tensor, after: Tensor) -> Tensor:
    """``||f(g.w) - f(w)|| / ||f(w)||`` from outputs ``(tasks, ...)``, which sees what the loss does not near minima."""
    size = before.flatten(1).norm(dim=1).clamp(min=torch.finfo(before.dtype).tiny)
    return (after - before).flatten(1).norm(dim=1) / size


def undo(before: Params, after: Params, drift: Tensor, limit: float) -> tuple[Params, Tensor]:
    """``after``, but ``before`` for the tasks whose drift is above ``limit`` or not a number; and which these are,
    ``(tasks,)``."""
    undone = ~(drift <= limit)
    return (where(undone, before, after) if bool(undone.any()) else after), undone


def acted(
    undone: Tensor, symmetry: Symmetry, elements: tuple[tuple[Tensor, Tensor], ...]
) -> tuple[tuple[Tensor, Tensor], ...]:
    """The elements, pairs ``(g, g^-1)`` per site, that have acted: the identity where a teleport was ``undone``
    ``(tasks,)``."""
    if not bool(undone.any()):
        return elements
    kept = []
    for site, (g, inverse) in zip(symmetry.sites, elements, strict=True):
        e = site.group.identity(len(g), dtype=g.dtype, device=g.device)
        kept.append((torch.where(per_task(undone, g), e, g), torch.where(per_task(undone, g), e, inverse)))
    return tuple(kept)
