"""Teleporting a model of one's own: the search for a better place on its orbit."""

from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.params import Params, Writes, write_at_once
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.acceptance import LIMIT, Limits, loss_drift
from meta_teleport.teleportation.ascent import Direction, identities
from meta_teleport.teleportation.binding import ModelLoss, bind
from meta_teleport.teleportation.conditions import require_finite, trainable_parameters, trainable_sites
from meta_teleport.teleportation.objectives import Loss
from meta_teleport.teleportation.proposer import Found, ProposesElements
from meta_teleport.teleportation.ranks import Processes, agreed, equal, shared, synchronize
from meta_teleport.teleportation.strategies import Choice, as_choice, as_strategy


@dataclass(frozen=True)
class Teleport:
    """What a teleport found.

    ``params``: the trainable parameters where it ended, by name, in the model's shapes. ``elements``: one per site of
    ``symmetry.continuous``, ``(*blocks, k, k)`` or ``(*blocks, k)``; acting with them gives ``params``. ``before`` and
    ``after``: the objective at the start and where the search ended; nan for gauges and random elements. ``drift``:
    ``|L(g.w) - L(w)| / max(|L(w)|, 1)``, nan if no loss was given. ``seconds``: wall-clock time.

    A teleport that was not ``accepted`` says why in ``reason`` and leads nowhere: ``params`` are the model's and
    ``elements`` identities; ``after`` and ``drift`` are what it would have come to.
    """

    params: dict[str, Tensor]
    elements: tuple[Tensor, ...]
    before: float
    after: float
    drift: float
    seconds: float
    accepted: bool
    reason: str

    def write(self, model: nn.Module) -> None:
        """Copies the parameters into the model, in place: all of them, or, where that fails, none."""
        write_at_once(self.writes(model))

    def writes(self, model: nn.Module) -> Writes:
        """What to write where: the model's parameters and their new values."""
        return [(p, self.params[name]) for name, p in model.named_parameters() if name in self.params]


def teleport(
    model: nn.Module,
    symmetry: Symmetry,
    objective: Choice | ProposesElements = "gradient_norm",
    *,
    loss: ModelLoss | None = None,
    batch: Any = None,
    direction: Direction = "raise",
    steps: int = 10,
    size: float = 0.1,
    generator: torch.Generator | None = None,
    tolerance: float = LIMIT,
    process_group: Processes = None,
) -> Teleport:
    """Looks for a better place on the orbit of the model's parameters; :meth:`Teleport.write` goes there.

    ``objective`` is one of

    - *gradient_norm* (the squared norm of ``grad L`` over all trainable parameters), *sharpness*, *curvature*, or a
      function ``(loss, params) -> (1,)`` of a pure loss and of parameters ``(1, *shape)``: raised or lowered in
      ``steps`` steps of which the first has Frobenius norm ``size`` (see :func:`ascent.ascend`). A search never ends on
      the wrong side of where it began.
    - *balanced*, *whitened* (the producers), *principal_axes*, or a :class:`gauges.Gauge`: closed forms, site by site
      from bottom to top. Where sites share parameters the sweep is repeated, at most ``steps`` times, until nothing
      moves. Needs no loss.
    - a rule (``meta_teleport.load``): the elements that it proposes at the gradient on the batch; updates are not used.
    - *random*: ``exp(T)``, T uniform on the sphere of Frobenius norm ``size`` over all sites, drawn from ``generator``.

    ``loss(model, batch)`` gives one number; ``batch`` is passed on as it is. The loss is evaluated in the mode the
    model is in and under the caller's autocast, with the same random numbers every time; the drift is measured in full
    precision. Only sites of ``symmetry.continuous`` whose parameters are all trainable move.

    ``process_group``: that of the processes which train this model together, each with a batch of its own. All of them
    call this function alike; the loss is the mean of theirs, the generator's state is the first one's, and what they
    find is bitwise the same.

    Cost: the gradient norm takes two gradients of the loss and two losses, however many steps. A function with second
    derivatives is evaluated and differentiated once per step.

    A teleport is not accepted if its drift is above ``tolerance``, if an element or a parameter is not finite, if an
    element is singular to working precision (without a loss: if eps times its condition number is above
    ``tolerance``), or if no step improved the objective.

    Raises ``UserError`` for what cannot be done, a loss or an objective that is not finite at the start included. The
    model is never changed.
    """
    started = perf_counter()
    strategy = as_strategy(as_choice(objective, model, symmetry), direction, steps, size, generator)
    limits = Limits(tolerance)
    params, movable = trainable_parameters(model), trainable_sites(model, symmetry)
    like = next(iter(params.values()))
    searched = _no_loss if loss is None else shared(bind(model, loss, batch), process_group)
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        drift_at = None if loss is None else _drift_from(params, shared(bind(model, loss, batch), process_group))
        synchronize(generator, like, process_group)
        found = strategy(movable, params, searched)
        fault = found.fault or limits.fault(movable, found.elements, found.params, looked=loss is not None)
        fault = agreed(fault, like, process_group)
        found = found if fault else _everywhere(found, process_group)
        drift = nan
        if drift_at is not None and not fault:
            drift = drift_at(found.params)
            fault = limits.drift_fault(drift)
    end = Found(params, identities(movable, params)) if fault else found
    elements = dict(zip(movable.sites, end.elements, strict=True))
    others = symmetry.continuous
    return Teleport(
        params={name: p[0] for name, p in end.params.items()},
        elements=tuple(elements.get(s, e)[0] for s, e in zip(others.sites, identities(others, params), strict=True)),
        before=found.before,
        after=found.after,
        drift=drift,
        seconds=perf_counter() - started,
        accepted=not fault,
        reason=fault,
    )


def _everywhere(found: Found, group: Processes) -> Found:
    """Process 0's."""
    params = dict(zip(found.params, equal(list(found.params.values()), group), strict=True))
    return found._replace(params=params, elements=equal(found.elements, group))


def _drift_from(params: Params, loss: Loss) -> Callable[[Params], float]:
    """The drift of other parameters of the orbit. Raises ``UserError`` if the loss is not finite at ``params``."""
    start = require_finite("loss", loss(params))
    return lambda moved: float(loss_drift(start, loss(moved)))


def _no_loss(params: Params) -> Tensor:
    raise UserError("the objective evaluates the loss: pass loss=... (called with the model and a batch) and batch=...")
