"""Any torch optimizer, with teleports between its steps."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from meta_teleport.optimizers.delegate import Delegate
from meta_teleport.optimizers.history import History, TeleportRecord, describe
from meta_teleport.optimizers.memory import Memory, writes_fault
from meta_teleport.optimizers.old_states import teleportation_of
from meta_teleport.optimizers.requirements import names_of, next_batch, require_base, require_loss
from meta_teleport.optimizers.rule_view import RuleView
from meta_teleport.optimizers.schedules import Schedule, as_schedule
from meta_teleport.symmetry.requirements import require_movable
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.acceptance import IMBALANCE, LIMIT, Limits
from meta_teleport.teleportation.ascent import Direction
from meta_teleport.teleportation.binding import ModelLoss
from meta_teleport.teleportation.conditions import trainable_sites
from meta_teleport.teleportation.imbalance import Balance
from meta_teleport.teleportation.progress import Progress
from meta_teleport.teleportation.strategies import Choice, Proposer, ProposesElements, as_choice, as_strategy, is_gauge
from meta_teleport.teleportation.teleport import teleport


class TeleportedOptimizer(Delegate):
    """``base_optimizer`` and, when ``schedule`` says so, a teleport of the model between two of its steps.

    ``step`` is a step of the base optimizer, a question to the schedule, and a teleport if one is due:

        w <- base step(w, grad L(w)),     then, if due:     g = search(w),  w <- g.w

    so the next gradient is computed at the moved weights, and clipping and gradient scaling see that one. A teleport
    due at step 0 comes before the first base step. Gradients that are in ``.grad`` at a teleport move with the weights,
    by the dual action; that is exact, so they need not be computed again.

    What one teleport may do without harm, many can pile up: a teleport is refused where it takes the imbalance of a
    site (:func:`meta_teleport.teleportation.imbalance.imbalance`) beyond ``imbalance`` times that at the start, unless
    it lowers it; ``inf`` sets no bound. Gauges are places, so they cannot pile up and are not bounded.

    ``symmetry``: of the model, exact sites only; permutations are left out. ``objective``, ``direction``, ``steps``,
    ``size``, ``tolerance``, ``generator``: see :func:`meta_teleport.teleport`. ``schedule``: a number k (every k
    steps), a list of steps, or a schedule of ``meta_teleport.optimizers.schedules``; with an empty list (the default)
    the wrapper is bitwise the base optimizer and teleports only when :meth:`teleport` is called. ``loss(model, batch)``
    and ``batches()``, which gives the batch to teleport on: gauges and random elements need neither, and measure their
    drift if they are given.

    A learned rule (``meta_teleport.load``) may stand in place of an objective: at a teleport it is shown gradients and
    loss, and moves the model by its elements; its update is not used. With ``loss`` and ``batches`` these are computed
    there. Without, they are those of the base optimizer's last step, at the weights before it: the loss that
    ``step(closure)`` returns, or that was reported before ``step``. The state of the rule moves along with a teleport.

    ``state`` says what becomes of the base optimizer's state at a teleport: *transport* moves it along (see the module
    ``transport``), *reset* makes the state of the moved parameters new, step counts included, *keep* leaves it.

    The base optimizer may own fewer parameters than the model has, as Muon does, beside a second optimizer. A parameter
    that a site moves is moved whoever owns it; what another optimizer remembers of it stays as it is.

    In distributed training every process must teleport alike: on the same batch, by generators of the same seed. Means
    of weights over time (EMA, SWA) must begin anew after a teleport, as they would mix coordinates.

    ``teleports`` lists one :class:`TeleportRecord` per teleport tried, in order. Hooks run around the base optimizer's
    step, before the teleport. Where a teleport is not accepted or fails by an exception, parameters, gradients and
    state are bitwise what they were before it.

    A copy has a copy of the model: ``copy.deepcopy((model, optimizer))`` keeps the two together. It can be pickled
    where ``loss`` and ``batches`` can. Torch's own LBFGS cannot step after either, so it cannot here.

    Raises ``UserError`` for models that cannot be moved, optimizers of other parameters, sites without a linear action,
    objectives without their loss, schedules that are none, and *transport* of a state that has no law.
    Source: Zhao et al. 2024, Figures 5 and 13 (teleports at given epochs, state kept).
    """

    def __init__(
        self,
        base_optimizer: Optimizer,
        model: nn.Module,
        symmetry: Symmetry,
        objective: Choice | ProposesElements = "gradient_norm",
        schedule: Schedule | int | list[int] | tuple[int, ...] = (),
        *,
        loss: ModelLoss | None = None,
        batches: Callable[[], Any] | None = None,
        state: str = "transport",
        direction: Direction = "raise",
        steps: int = 10,
        size: float = 0.1,
        tolerance: float = LIMIT,
        imbalance: float = IMBALANCE,
        generator: torch.Generator | None = None,
    ) -> None:
        require_base(base_optimizer, state)
        require_loss(objective, loss, batches)
        limits = Limits(tolerance, imbalance)
        require_movable(model)
        trainable_sites(model, symmetry)
        choice = as_choice(objective, model, symmetry)
        as_strategy(choice, direction, steps, size, generator)
        super().__init__(base_optimizer)
        self.model, self.symmetry, self.schedule = model, symmetry.continuous, as_schedule(schedule)
        settings: dict[str, Any] = {"direction": direction, "steps": steps, "size": size, "tolerance": tolerance}
        self._search = partial(teleport, model, self.symmetry, choice, loss=loss, generator=generator, **settings)
        self._batches, self._generator = batches, generator
        self._progress, self._history, self._started = Progress(), History(), perf_counter()
        self._view = RuleView(choice if isinstance(choice, Proposer) else None, model, batches is not None)
        self._balance = Balance(model, self.symmetry, inf if is_gauge(choice) else limits.imbalance)
        self._memory = Memory(base_optimizer, model, self.symmetry, state)
        self._memory.names()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_started": self._started - perf_counter()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._started += perf_counter()

    @property
    def teleports(self) -> list[TeleportRecord]:
        """One record per teleport that was tried, in order."""
        return self._history.records

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base optimizer, and a teleport if one is due after it (or before the first step)."""
        if self._progress.step == 0:
            self._teleport_if_due()
        self._view.before_step()
        value = super().step(closure)
        self._progress.step += 1
        if isinstance(value, float) or (isinstance(value, Tensor) and value.numel() == 1):
            self.report(loss=value)
        self._teleport_if_due()
        return value

    step.hooked = True  # type: ignore[attr-defined]  # hooks run in the base optimizer's step, and once

    def report(self, *, loss: Tensor | float | None = None, validation: Tensor | float | None = None) -> None:
        """Tells the training or validation loss at the present weights, which plateaus and the signs in the records
        go by. The loss that ``step(closure)`` returns is known already. A training loss that is a tensor is not read
        before it is needed."""
        if loss is not None:
            self._progress.report(loss.detach() if isinstance(loss, Tensor) else loss)
            self._history.watch(self._progress)
        if validation is not None:
            self._history.validate(float(validation.detach() if isinstance(validation, Tensor) else validation))

    def teleport(self) -> TeleportRecord:
        """Teleports now, due or not, and records it."""
        started = perf_counter()
        self._memory.names()
        batch = None if self._batches is None else next_batch(self._batches)
        self._view.show(self._progress)
        with torch.enable_grad():
            found = self._search(batch=batch)
        reason = found.reason or self._balance.fault(found.params)
        writes = [] if reason else self._memory.moved(found.elements)
        reason = reason or writes_fault(writes)
        found = replace(found, accepted=not reason, reason=reason)
        if found.accepted:
            found.write(self.model)
            self._memory.write(writes)
            self._view.accept()
        record = describe(found, self.symmetry, self._progress.step, perf_counter() - started)
        self._history.add(record, self._progress)
        return record

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The base optimizer's. Raises ``UserError`` for tensors that are not parameters of the model."""
        parameters = param_group["params"]
        param_group["params"] = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        names_of(self.model, [param_group])
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's and, as ``teleportation``, the records and the state of schedule and generator: an
        optimizer that takes them over goes on bitwise as this one would."""
        ours = {
            "progress": self._timed().state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self._history.state_dict(),
            "generator": None if self._generator is None else self._generator.get_state(),
            "rule": self._view.state_dict(),
            "balance": self._balance.state_dict(),
        }
        return {**self.base.state_dict(), "teleportation": ours}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave; or the base optimizer's state alone, if that is all there is."""
        state_dict = dict(state_dict)
        ours = state_dict.pop("teleportation", None)
        self.base.load_state_dict(state_dict)
        if ours is None:
            return
        ours = teleportation_of(ours)
        self._progress = Progress(**ours["progress"])
        self._started = perf_counter() - self._progress.elapsed
        self.schedule.load_state_dict(ours["schedule"])
        self._history.load_state_dict(ours["history"])
        self._view.load_state_dict(ours["rule"])
        self._balance.load_state_dict(ours["balance"])
        if self._generator is not None and ours["generator"] is not None:
            self._generator.set_state(ours["generator"])

    def _teleport_if_due(self) -> None:
        due = self.schedule.due(self._timed())
        self._progress.loss = None
        if due:
            self.teleport()

    def _timed(self) -> Progress:
        """The record, with the seconds until now."""
        self._progress.elapsed = perf_counter() - self._started
        return self._progress
