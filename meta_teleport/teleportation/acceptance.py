"""Drift: how much a teleport moves what it should leave alone.

In exact arithmetic an exact teleport has none. In floating point the data-dependent action (a) writes large weights
where the inputs are nearly dependent, and their rounding moves the loss: by about eps cond(X), which float32 cannot
always afford. Such a teleport is cut short or undone, task by task, and counted.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from meta_teleport.params import Params, per_task, where
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Element, Symmetry

LIMIT = 1e-4


def rounding(dtype: torch.dtype) -> float:
    """The rise of an initial loss that counts as rounding, in units of it: ``sqrt(eps)``, but ``LIMIT`` at most."""
    return min(LIMIT, torch.finfo(dtype).eps ** 0.5)


def is_safe(before: Tensor, after: Tensor, ceiling: Tensor | None = None) -> Tensor:
    """Whether losses ``(tasks,)`` before and after a teleport drift by ``LIMIT`` at most, and end no higher than
    ``ceiling`` ``(tasks,)``; no, where they are not numbers."""
    safe = loss_drift(before, after) <= LIMIT
    return safe if ceiling is None else safe & (after <= ceiling)


def ceiling_of(loss: Tensor, initial: Tensor) -> Tensor:
    """How high a loss ``(tasks,)`` may be after a step that is not to raise it: above that before the step by ``LIMIT``
    of it, above the ``initial`` one by :func:`rounding` of that."""
    return torch.minimum(loss + LIMIT * loss.abs(), initial + rounding(initial.dtype) * initial.abs())


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


def move_safely(
    symmetry: Symmetry,
    params: Params,
    elements: tuple[Element, ...],
    inputs: LayerInput,
    loss_at: Callable[[Params], Tensor],
    ceiling: Tensor | None = None,
) -> tuple[Params, tuple[Element, ...], Tensor]:
    """The parameters moved by ``elements``, pairs ``(g, g^-1)`` per site, as far as that leaves the loss alone.

    Where it is not :func:`is_safe`, the highest site that acts is left out, again and again: rounding at a site grows
    with the condition of the activations below it, which the lower sites can mend for the next step.
    ``loss_at(params)`` gives the losses ``(tasks,)``; it is called twice if all is safe. Returns the parameters, the
    elements that have acted (identities elsewhere), and which tasks had a site left out, ``(tasks,)``.
    """
    with torch.no_grad():
        before = loss_at(params)
    acting, reached = elements, torch.full_like(before, len(elements), dtype=torch.long)
    while True:
        moved = symmetry.move(params, acting, inputs)
        with torch.no_grad():
            drifts = ~is_safe(before, loss_at(moved), ceiling) & (reached > 0)
        if bool(drifts.any()):
            reached = reached - drifts.long()
            acting = _lowest(symmetry, elements, reached)
        if not bool((drifts & (reached > 0)).any()):
            break
    still = reached == 0
    return where(still, params, moved) if bool(still.any()) else moved, acting, reached < len(elements)


def _lowest(symmetry: Symmetry, elements: tuple[Element, ...], count: Tensor) -> tuple[Element, ...]:
    """The elements of the lowest ``count`` ``(tasks,)`` sites, identities at the others."""
    kept = []
    for i, (site, (g, inverse)) in enumerate(zip(symmetry.sites, elements, strict=True)):
        e, acts = site.group.identity(len(g), dtype=g.dtype, device=g.device), per_task(count > i, g)
        kept.append((torch.where(acts, g, e), torch.where(acts, inverse, e)))
    return tuple(kept)


def teleported(
    symmetry: Symmetry,
    params: Params,
    algebra: tuple[Tensor, ...],
    tolerance: float,
    loss: Callable[[Params], Tensor] | None = None,
) -> tuple[Params, tuple[Element, ...]] | None:
    """``exp(T) . w`` for parameters ``(1, *shape)``, and the pairs ``(g, g^-1)`` that have acted; or None.

    None if what has moved is not finite, if ``eps |g|_1 |g^-1|_1`` of an element that is neither isometric nor diagonal
    is above ``tolerance`` (by about so much rounding moves the loss), or if ``loss`` is given and drifts by more. One
    number is read on the host without a loss, two with it.
    """
    elements = symmetry.exp_pairs(algebra)
    moved = symmetry.move(params, elements)
    if not _is_sound(symmetry, moved, elements, tolerance):
        return None
    if loss is not None and not bool(loss_drift(loss(params), loss(moved)) <= tolerance):
        return None
    return moved, elements


def _is_sound(symmetry: Symmetry, moved: Params, elements: tuple[Element, ...], tolerance: float) -> bool:
    touched = {name for site in symmetry.sites for name in site.parameters}
    sizes = torch._foreach_norm([moved[name] for name in touched])
    sound = torch.isfinite(torch.stack(sizes)).all()
    for site, (g, inverse) in zip(symmetry.sites, elements, strict=True):
        if not (site.group.is_isometric or site.group.is_diagonal):
            condition = site.group.condition(g, inverse).max()
            sound = sound & (condition * torch.finfo(g.dtype).eps <= tolerance)
    return bool(sound)
