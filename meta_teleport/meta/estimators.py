"""Meta-gradient estimators: from one window of a batch of tasks to a gradient for phi.

One signature for all: ``estimate(rule, phi, tasks, carry, steps, objective, ...) -> Estimate``. What the carry holds
is the estimator's business.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.meta.unroll import Carry, unroll
from meta_teleport.params import Params, leaves
from meta_teleport.rules.least_loss import require_not_negative
from meta_teleport.rules.rule import Rule
from meta_teleport.tasks.family import Tasks

Objective = Callable[[Tensor, Tensor], Tensor]
Penalty = Callable[[Tensor, Tensor, Tensor], Tensor]


class Estimate(NamedTuple):
    """The meta-loss of a window (a mean over tasks, nan if all have failed), its gradient, the losses ``(steps,
    tasks)``, the next carry, and how many tasks failed in this window."""

    meta_loss: Tensor
    gradient: Params
    losses: Tensor
    carry: Any
    failed: int

    @property
    def lost(self) -> bool:
        """No task has survived this window: its meta-loss is nan, and its gradient zero."""
        return not bool(self.carry.alive.any())


def loss_sum(losses: Tensor, initial: Tensor) -> Tensor:
    """The published meta-objective: the sum of a task's losses over the window. Shapes ``(steps, tasks)`` and
    ``(tasks,)`` to ``(tasks,)``."""
    return losses.sum(0)


def mean_log_loss(losses: Tensor, initial: Tensor, floor: float = 0.0) -> Tensor:
    """The mean over the window of ``log(L_t / L_0)``: every factor gained counts the same, early or late, on easy
    tasks and hard ones. Losses below ``floor L_0``, and below the smallest normal number, count as that number."""
    tiny = torch.finfo(losses.dtype).tiny
    return (_log(losses, initial, floor) - initial.clamp(min=tiny).log()).mean(0)


def end_log_loss(losses: Tensor, initial: Tensor, floor: float = 0.0) -> Tensor:
    """:func:`mean_log_loss` over the last tenth of the window, a step at least. Where batches are noisy long steps pay
    later than short ones, and the mean over a window asks for short ones."""
    return mean_log_loss(losses[-max(1, len(losses) // 10) :], initial, floor)


def mean_increase(losses: Tensor, initial: Tensor, before: Tensor, floor: float = 0.0) -> Tensor:
    """The mean over the window of ``max(0, log L_t - log L_(t-1))``; ``before`` ``(tasks,)`` is the loss before the
    window's first. Losses are cut off below as in :func:`mean_log_loss`; shapes as there."""
    logs = _log(torch.cat([before.unsqueeze(0), losses]), initial, floor)
    return logs.diff(dim=0).clamp(min=0).mean(0)


def _log(losses: Tensor, initial: Tensor, floor: float) -> Tensor:
    for values in (initial, losses):
        require_not_negative(
            values, initial, "log objectives and penalties take", "add a constant, or take objective sum"
        )
    least = (floor * initial).clamp(min=torch.finfo(losses.dtype).tiny) if floor else torch.finfo(losses.dtype).tiny
    return losses.clamp(min=least).log()


OBJECTIVES: dict[str, Callable[..., Tensor]] = {"sum": loss_sum, "log": mean_log_loss, "end": end_log_loss}


def truncated_bptt(
    rule: Rule,
    phi: Params,
    tasks: Tasks,
    carry: Carry,
    steps: int,
    objective: Objective,
    *,
    penalty: Penalty | None = None,
    second_order: bool = False,
    losses_before: bool = False,
    errors: bool = False,
) -> Estimate:
    """Back-propagation through one window, truncated at its start.

    The meta-loss of a task is ``objective(losses, L_0)``, plus ``penalty(losses, L_0, before)`` if there is a
    ``penalty``, where ``before`` is the loss at the start of the window.

    ``errors``: the objective and the penalty see the tasks' errors in place of their losses.

    A task that fails in the window is found in the forward pass, and the window runs again without it, so that
    nothing infinite ever enters a product; should a meta-gradient overflow nevertheless, the tasks that cause it are
    found by bisection, and the window runs once more without them too.
    """

    initial, before = references(tasks, carry, penalty, errors)

    def run(at: Carry) -> tuple[Tensor, Carry, Tensor, Params]:
        free = leaves(phi)
        losses, new = unroll(
            rule,
            free,
            tasks,
            at,
            steps,
            second_order=second_order,
            losses_before=losses_before,
            errors=errors,
        )
        if bool((at.alive & ~new.alive).any()):
            return run(at._replace(failed_at=new.failed_at))
        value = mean_over(at.alive, meta_losses(objective, penalty, losses, initial, before))
        if not value.requires_grad:
            raise UserError(
                f"no meta-parameter of {type(rule).__name__} has any influence on its losses: let its proposals depend "
                "on them, or take a longer training.window"
            )
        found = torch.autograd.grad(value, list(free.values()), allow_unused=True, materialize_grads=True)
        return losses.detach(), new, value.detach(), dict(zip(free, found, strict=True))

    def overflowing(candidates: Tensor) -> list[int]:
        mask = torch.zeros_like(carry.alive)
        mask[candidates] = True
        if not len(candidates) or _finite(run(carry.keeping(mask))[3]):
            return []
        if len(candidates) == 1:
            return candidates.tolist()
        half = len(candidates) // 2
        return overflowing(candidates[:half]) + overflowing(candidates[half:])

    losses, new, value, gradient = run(carry)
    if not _finite(gradient):
        kept = new.alive.clone()
        kept[overflowing(new.alive.nonzero().squeeze(1))] = False
        losses, new, value, gradient = run(carry._replace(failed_at=new.failed_at).keeping(kept))
    return Estimate(known(value, new.alive), gradient, losses, new, int((carry.alive & ~new.alive).sum()))


@torch.no_grad()
def references(
    tasks: Tasks, carry: Carry, penalty: Penalty | None, errors: bool = False
) -> tuple[Tensor, Tensor | None]:
    """What a window is measured against, losses or ``errors`` ``(tasks,)``: those of the tasks' start, and, if a
    ``penalty`` asks for it, those at the start of the window."""
    value = tasks.error if errors else tasks.loss
    initial = tasks.error(tasks.params, torch.zeros_like(carry.step)) if errors else carry.initial
    return initial, None if penalty is None else value(carry.params, carry.step)


def meta_losses(
    objective: Objective, penalty: Penalty | None, losses: Tensor, initial: Tensor, before: Tensor | None
) -> Tensor:
    """The meta-loss of each task, ``(tasks,)``."""
    values = objective(losses, initial)
    return values if penalty is None or before is None else values + penalty(losses, initial, before)


def mean_over(alive: Tensor, values: Tensor) -> Tensor:
    """The mean of ``values`` ``(tasks,)`` over the tasks that are ``alive``; 0 if none is."""
    return torch.where(alive, values, torch.zeros_like(values)).sum() / alive.sum().clamp(min=1)


def known(meta_loss: Tensor, alive: Tensor) -> Tensor:
    """The meta-loss of a window, nan if none of its tasks is ``alive``."""
    return torch.where(alive.any(), meta_loss, torch.nan)


def _finite(gradient: Params) -> bool:
    return all(bool(torch.isfinite(torch.stack(g.aminmax())).all()) for g in gradient.values())
