"""One window: a rule trains a batch of tasks for some steps, as one differentiable program.

For every task side by side, and t = 1, 2, ... (Algorithm 1 of Zhao et al. 2024):

    f_t, T_t = rule(grad L(w), ...; phi)
    w <- exp(T_t) . (w + f_t)

with c f_t in place of f_t where a rule backtracks, see :mod:`meta_teleport.rules.backtracking`.
``unroll`` is pure: meta-gradients flow from the returned losses to ``phi`` through every step of the window, and stop
at the carry that came in. The element of a window's last step leaves the window's last loss unchanged, so it gets no
meta-gradient from this window.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_map

from meta_teleport.errors import UserError
from meta_teleport.params import Params, axpy, leaves, per_task, value_and_grad, where
from meta_teleport.rules.backtracking import lengths
from meta_teleport.rules.contract import require_proposal, require_state
from meta_teleport.rules.least_loss import require_readable
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Element
from meta_teleport.tasks.family import Tasks
from meta_teleport.teleportation.acceptance import ceiling_of, move_safely

FAILURE_FACTOR = 1e6
NEVER = torch.iinfo(torch.long).max
Probe = Callable[[Tasks, Params, Params, Proposal, Tensor], None]


def failure_limit(initial: Tensor) -> Tensor:
    """The loss above which a task has failed: a million times its initial one, in size."""
    return FAILURE_FACTOR * initial.abs()


class Carry(NamedTuple):
    """What one window hands to the next: everything has the task dimension in front.

    A task whose loss was not finite, or above :func:`failure_limit` of its ``initial`` loss, is no longer ``alive`` and
    stays where it was before that step: ``failed_at`` counts the steps up to and with that one, 0 where the initial
    loss was not finite, NEVER where nothing has failed. ``rejected`` counts teleports that not all sites took part in,
    as that would have moved the loss, see :func:`move_safely`.
    """

    params: Params  # (tasks, *shape) each
    state: Any  # (tasks, ...), what the rule keeps
    step: Tensor  # (tasks,)
    initial: Tensor  # (tasks,)
    failed_at: Tensor  # (tasks,)
    rejected: Tensor  # (tasks,)

    @property
    def alive(self) -> Tensor:
        """The tasks that have not failed, ``(tasks,)``."""
        return self.failed_at == NEVER

    def keeping(self, kept: Tensor) -> "Carry":
        """The same, but all that are alive and not ``kept`` ``(tasks,)`` fail at the present step."""
        return self._replace(failed_at=torch.where(self.alive & ~kept, self.step, self.failed_at))


def start(rule: Rule, tasks: Tasks) -> Carry:
    """The carry before the first step of every task."""
    step = torch.zeros(tasks.count, dtype=torch.long, device=next(iter(tasks.params.values())).device)
    initial = tasks.loss(tasks.params, step).detach()
    if initial.shape != step.shape:
        name = type(tasks).__name__
        raise UserError(
            f"{name}.loss gives shape {tuple(initial.shape)}: give one number per task, {tuple(step.shape)}"
        )
    require_readable(rule, initial, initial)
    state = rule.init(tasks.params, tasks.orbit)
    require_state(rule, state, tasks.count)
    failed_at = torch.where(torch.isfinite(initial), NEVER, step)
    return Carry(tasks.params, state, step, initial, failed_at, torch.zeros_like(step))


def unroll(
    rule: Rule,
    phi: Params,
    tasks: Tasks,
    carry: Carry,
    steps: int,
    *,
    second_order: bool = False,
    losses_before: bool = False,
    errors: bool = False,
    probe: Probe | None = None,
) -> tuple[Tensor, Carry]:
    """``steps`` steps of ``rule`` with meta-parameters ``phi``.

    Returns the losses ``(steps, tasks)``, each taken after its step (update and teleport), or before it with
    ``losses_before``, and the next carry. The last step of a window gets no credit then. So it is in the published
    code, except for where it cuts: between the update and the element of steps 10, 20, ... (windows of 10). Its first
    window sums eleven losses, and the element of the step at a cut gets credit in the window that follows.

    ``errors`` returns :meth:`Tasks.error` instead: what is to be made small where the loss is a noisy view of it.
    ``second_order`` lets meta-gradients flow through the gradients that the rule observes as well. Tasks that have
    failed repeat their last loss; for a meta-gradient, run the window again without them, as the estimators do.
    ``probe(tasks, before, after, proposal, step)`` is shown what each group action did.
    """
    _, state, step, initial, failed_at, rejected = carry
    alive, symmetry = carry.alive, tasks.orbit
    params = leaves(carry.params) if second_order else carry.params
    loss, gradients = _evaluate(tasks, params, step, second_order)  # (tasks,), and (tasks, *shape) each
    shown = [tasks.error(params, step) if errors else loss]
    failed = not bool(alive.all())
    bounded = rule.backtracking and not all(site.exact for site in symmetry.sites)
    for _ in range(steps):
        inputs = tasks.inputs(step)
        hidden = symmetry.hidden(params, inputs) if rule.observes_hidden else ()  # per site (tasks, k, n)
        grams = symmetry.grams(params, inputs) if rule.observes_grams else ()  # per site (tasks, *blocks, k, k)
        observation = Observation(params, gradients, loss, step, hidden, grams, symmetry)
        if not second_order:
            observation = observation.detached()
        if failed:
            observation = observation.harmless(alive)
        proposal, state = functional_call(rule, phi, (observation, state))
        require_proposal(rule, proposal, params, symmetry)
        if failed:
            proposal = proposal.only(alive)
        length: float | Tensor = 1.0  # or (tasks,)
        if rule.backtracking:
            length = lengths(proposal.update, params, gradients, loss, partial(tasks.loss, step=step))
        moved = updated = axpy(length, proposal.update, params)
        if proposal.algebra:
            elements = symmetry.exp_pairs(proposal.algebra)  # per site g and its inverse, (tasks, *blocks, k, k)
            ceiling = ceiling_of(loss.detach(), initial) if bounded else None
            moved, elements, stopped = _teleport(tasks, updated, elements, inputs, step, ceiling)
            state = rule.transport(state, symmetry, elements)
            rejected = rejected + stopped
            if probe is not None:
                probe(tasks, updated, moved, proposal, step)
        step = step + 1
        new, gradients = _evaluate(tasks, moved, step, second_order)
        require_readable(rule, new, initial)
        healthy = torch.isfinite(new) & (new <= failure_limit(initial))
        failed_at = torch.where(alive & ~healthy, step, failed_at)
        alive = alive & healthy
        failed = not bool(alive.all())
        # a failed task stays at its last good point, so that its numbers remain finite
        params = where(alive, moved, params) if failed else moved
        loss = torch.where(alive, new, loss) if failed else new
        shown.append(tasks.error(params, step) if errors else loss)
    require_state(rule, state, tasks.count)
    kept = shown[:-1] if losses_before else shown[1:]
    # detached: meta-gradients stop where a window ends
    return torch.stack(kept), tree_map(torch.Tensor.detach, Carry(params, state, step, initial, failed_at, rejected))


def _teleport(
    tasks: Tasks,
    params: Params,
    elements: tuple[Element, ...],
    inputs: LayerInput,
    step: Tensor,
    ceiling: Tensor | None,
) -> tuple[Params, tuple[Element, ...], Tensor]:
    """The parameters moved by the proposed elements, those that have acted, and the tasks ``(tasks,)`` where not all of
    them did, because that would have moved the loss."""
    symmetry = tasks.orbit
    if symmetry.keeps_loss:
        return move_safely(symmetry, params, elements, inputs, partial(tasks.loss, step=step), ceiling)
    return symmetry.move(params, elements, inputs), elements, torch.zeros_like(step, dtype=torch.bool)


def _evaluate(tasks: Tasks, params: Params, step: Tensor, second_order: bool) -> tuple[Tensor, Params]:
    """The losses ``(tasks,)`` and their gradients.

    With second derivatives both are part of the graph. Without, the gradients are constants, and as they are all that
    a meta-gradient needs of the loss, it enters the graph as one node.
    """
    second_order = second_order and torch.is_grad_enabled()
    loss, gradients = value_and_grad(partial(tasks.loss, step=step), params, second_order)
    if second_order:
        return loss, gradients
    return _KnownGradient.apply(loss, *gradients.values(), *params.values()), gradients


class _KnownGradient(torch.autograd.Function):
    """A loss as a function of parameters whose gradient has been computed already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *gradients_and_params: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients_and_params[: len(gradients_and_params) // 2])
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        return None, *(None for _ in gradients), *(per_task(grad, g) * g for g in gradients)
