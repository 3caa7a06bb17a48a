"""Backtracking: a rule whose updates never raise the loss of a full batch.

A rule that backtracks (:attr:`Rule.backtracking`) has its update f shortened to c f, before the teleport of the step,
which leaves the loss alone. Where L(w + c f) > L(w), or is not a number, the next c is the minimum of the parabola
through L(w), the slope <dL/dw, f> and L(w + c f), kept between ``LEAST`` and ``MOST`` of the last (Nocedal and Wright
2006, section 3.5); if ``TRIALS`` of them are in vain a task makes no update. Meta-gradients take c as constant. Where
sites depend on data, a teleport that would leave the loss above L(w) by its rounding is cut short, see
:mod:`teleportation.acceptance`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from meta_teleport.params import Params, axpy, dot

TRIALS, LEAST, MOST = 7, 1e-2, 0.5


@torch.no_grad()
def lengths(
    update: Params, params: Params, gradients: Params, loss: Tensor, loss_at: Callable[[Params], Tensor]
) -> Tensor:
    """The factors c ``(tasks,)`` of the ``update``: the first that was tried, from 1 downwards, that does not raise the
    ``loss`` ``(tasks,)``, or 0.

    ``loss_at(params)`` gives the losses ``(tasks,)`` elsewhere. It is called once if no task's loss rises, and
    ``TRIALS`` times at most.
    """
    slope, length = dot(gradients, update), torch.ones_like(loss)
    for _ in range(TRIALS):
        found = loss_at(axpy(length, update, params))
        rises = ~(found <= loss)
        if not bool(rises.any()):
            return length
        least = -slope * length.square() / (2 * (found - loss - slope * length))
        shorter = torch.minimum(torch.maximum(least.nan_to_num(), LEAST * length), MOST * length)
        length = torch.where(rises, shorter, length)
    return torch.where(rises, 0.0, length)
