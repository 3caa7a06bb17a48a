"""The acceptance test: is this teleport safe?

In exact arithmetic an exact teleport leaves the loss alone. In floating point it may drift: an ill-conditioned element
multiplies the rounding of the weights, and the data-dependent action (a) writes large weights where the inputs are
nearly dependent, by about eps cond(X), which float32 cannot always afford. A teleport is safe if

    finite       elements, parameters and the loss are
    condition    every element's condition number is below 1 / eps, or ``tolerance`` / eps if nothing looks at the loss
    drift        ``|L(g.w) - L(w)| / max(|L(w)|, 1)`` is at most ``tolerance``
    imbalance    no site is more uneven than it may be, see :mod:`meta_teleport.safeguards.imbalance`

One model is given the reason in one line, empty if its teleport is safe; batches of tasks get masks. What is not safe
is cut short or left out, task by task, and counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.params import Params, per_task, where
from meta_teleport.symmetry.group import Group
from meta_teleport.symmetry.site import LayerInput, Site
from meta_teleport.symmetry.symmetry import Element, Symmetry

LIMIT = 1e-4
IMBALANCE = 4.0
"""By which factor the imbalance may exceed that at the start of training. One search of ten steps of size 0.1 raises
that of a balanced site to cosh(2) = 3.8 at most, when it moves a single unit."""


@dataclass(frozen=True)
class Limits:
    """``tolerance``: how far the loss may drift. ``imbalance``: by which factor that of a site may exceed the one at
    the start of training; inf sets no bound.

    Raises ``UserError`` for bounds that are none.
    """

    tolerance: float = LIMIT
    imbalance: float = inf

    def __post_init__(self) -> None:
        if not isinstance(self.tolerance, int | float) or not self.tolerance >= 0:
            raise UserError(f"tolerance={self.tolerance!r}: give a number that is not negative")
        if not isinstance(self.imbalance, int | float) or not self.imbalance >= 1:
            raise UserError(f"imbalance={self.imbalance!r}: give a number of at least 1, or float('inf') for no bound")

    def condition(self, dtype: torch.dtype, looked: bool = False) -> float:
        """The largest condition number of an element: rounding moves the loss by about eps times that. Where the loss
        is ``looked`` at, only elements that are singular to working precision are beyond it."""
        return (1.0 if looked else self.tolerance) / torch.finfo(dtype).eps

    def fault(self, symmetry: Symmetry, elements: Sequence[Tensor], params: Params, looked: bool) -> str:
        """Why one element per site, or the parameters it leads to, cannot be used; empty if they can."""
        limit = self.condition(next(iter(params.values())).dtype, looked)
        for site, g in zip(symmetry.sites, elements, strict=True):
            if fault := element_fault(site, g, limit):
                return fault
        unusable = (name for name, parameter in params.items() if not all_finite(parameter))
        return next((f"the moved parameter '{name}' is not finite" for name in unusable), "")

    def drift_fault(self, drift: float) -> str:
        """Why a teleport with this drift cannot be accepted; empty if it can."""
        if drift <= self.tolerance:
            return ""
        return f"the loss moved by {drift:.1e}, and the tolerance is {self.tolerance:.1e}"


def rounding(dtype: torch.dtype) -> float:
    """The rise of an initial loss that counts as rounding, in units of it: ``sqrt(eps)``, but ``LIMIT`` at most."""
    return min(LIMIT, torch.finfo(dtype).eps ** 0.5)


def is_safe(before: Tensor, after: Tensor, ceiling: Tensor | None = None, tolerance: float = LIMIT) -> Tensor:
    """Whether losses ``(tasks,)`` before and after a teleport drift by ``tolerance`` at most, and end no higher than
    ``ceiling`` ``(tasks,)``; no, where they are not numbers."""
    safe = loss_drift(before, after) <= tolerance
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


def all_finite(tensor: Tensor) -> bool:
    """A finite sum has finite terms, and is quick; one that is not may have overflowed."""
    return isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def is_finite(params: Params) -> Tensor:
    """Whether all parameters are finite, ``(tasks,)``."""
    return torch.stack([p.flatten(1).isfinite().all(1) for p in params.values()]).all(0)


def is_usable(group: Group, g: Tensor, limit: float) -> Tensor:
    """Whether elements ``(tasks, *blocks, ...)`` are finite, and their largest singular value is below ``limit`` times
    the smallest, ``(tasks, *blocks)``."""
    wide = g.double().nan_to_num(0.0, 0.0, 0.0)
    values = wide.sort(descending=True).values if group.is_diagonal else torch.linalg.svdvals(wide)
    below = values[..., 0] < limit * values[..., -1]
    return below & g.isfinite().flatten(below.ndim).all(-1)


def only(group: Group, g: Tensor, used: Tensor) -> Tensor:
    """The elements ``g`` where they are ``used`` ``(tasks,)`` or ``(tasks, *blocks)``, identities elsewhere."""
    return torch.where(per_task(used, g), g, group.identity(len(g), dtype=g.dtype, device=g.device))


def condition_number(group: Group, g: Tensor) -> float:
    """The largest :meth:`Group.condition` over all tasks and blocks; inf if g is singular, or not finite."""
    return float(group.condition(g).max()) if bool(torch.isfinite(g).all()) else inf


def element_fault(site: Site, g: Tensor, limit: float = inf) -> str:
    """Why an element cannot be used, in one line; empty if it can.

    It is not finite, or singular, or its condition number is above ``limit``: rounding moves the loss by about eps
    times that.
    """
    if not bool(torch.isfinite(g).all()):
        return f"the element at site '{site.name}' is not finite"
    condition = condition_number(site.group, g)
    if condition == inf:
        return f"the element at site '{site.name}' is singular"
    if condition <= limit:
        return ""
    return f"the element at site '{site.name}' is ill-conditioned: {condition:.1e}, and the limit is {limit:.1e}"


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
    pairs = enumerate(zip(symmetry.sites, elements, strict=True))
    return tuple((only(s.group, g, count > i), only(s.group, inverse, count > i)) for i, (s, (g, inverse)) in pairs)


def teleported(
    symmetry: Symmetry,
    params: Params,
    algebra: tuple[Tensor, ...],
    limits: Limits,
    loss: Callable[[Params], Tensor] | None = None,
) -> tuple[Params, tuple[Element, ...]] | None:
    """``exp(T) . w`` for parameters ``(1, *shape)``, and the pairs ``(g, g^-1)`` that have acted; or None.

    None if what has moved is not finite, if ``|g|_1 |g^-1|_1`` of an element that is neither isometric nor diagonal is
    above the limit on condition numbers, or if ``loss`` is given and drifts by more than the tolerance. One number is
    read on the host without a loss, two with it.
    """
    elements = symmetry.exp_pairs(algebra)
    moved = symmetry.move(params, elements)
    if not _is_sound(symmetry, moved, elements, limits):
        return None
    if loss is not None and not bool(is_safe(loss(params), loss(moved), tolerance=limits.tolerance)):
        return None
    return moved, elements


def _is_sound(symmetry: Symmetry, moved: Params, elements: tuple[Element, ...], limits: Limits) -> bool:
    touched = {name for site in symmetry.sites for name in site.parameters}
    sizes = torch._foreach_norm([moved[name] for name in touched])
    sound = torch.isfinite(torch.stack(sizes)).all()
    for site, (g, inverse) in zip(symmetry.sites, elements, strict=True):
        if not (site.group.is_isometric or site.group.is_diagonal):
            sound = sound & (site.group.condition(g, inverse).max() <= limits.condition(g.dtype))
    return bool(sound)
