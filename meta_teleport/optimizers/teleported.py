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

from meta_teleport.optimizers.compilation import run_as_written
from meta_teleport.optimizers.delegate import Delegate
from meta_teleport.optimizers.given_loss import ReturnedLoss
from meta_teleport.optimizers.history import HARM, UNDONE, History, TeleportRecord, describe, refused
from meta_teleport.optimizers.memory import Memory, writes_fault
from meta_teleport.optimizers.requirements import (
    model_fault,
    names_of,
    next_batch,
    require_base,
    require_loss,
    require_none_kept,
)
from meta_teleport.optimizers.rule_proposer import RuleView
from meta_teleport.optimizers.saved_states import embed, extract, only_fills_states, teleportation_of
from meta_teleport.optimizers.schedules import Schedule, as_schedule
from meta_teleport.safeguards.aftermath import Aftermath, Outcome
from meta_teleport.safeguards.habit import PATIENCE
from meta_teleport.safeguards.imbalance import Balance
from meta_teleport.safeguards.lookahead import Lookahead
from meta_teleport.safeguards.search import Search
from meta_teleport.symmetry.requirements import require_movable
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.acceptance import IMBALANCE, LIMIT, Limits
from meta_teleport.teleportation.ascent import Direction
from meta_teleport.teleportation.binding import ModelLoss
from meta_teleport.teleportation.conditions import trainable_sites
from meta_teleport.teleportation.progress import Clock, Progress
from meta_teleport.teleportation.proposer import Proposer, ProposesElements
from meta_teleport.teleportation.ranks import Processes, Ranks, decided
from meta_teleport.teleportation.strategies import Choice, as_choice, is_gauge


class TeleportedOptimizer(Delegate):
    """``base_optimizer`` and, when ``schedule`` says so, a teleport of the model between two of its steps.

    ``step`` is a step of the base optimizer, a question to the schedule, and a teleport if one is due:

        w <- base step(w, grad L(w)),     then, if due:     g = search(w),  w <- g.w

    so the next gradient is computed at the moved weights, and clipping and gradient scaling see that one. A teleport
    due at step 0 comes before the first base step. Gradients in ``.grad`` move with the weights, by the dual action.

    Harm is guarded against (folder ``safeguards``). A teleport that takes the imbalance of a site beyond ``imbalance``
    times that at the start is refused, unless it lowers it, and the search is tried again with half its length; ``inf``
    sets no bound, and gauges are places, which do not pile up. With ``lookahead=n`` so is one from where n virtual
    steps end at a higher loss. Where losses are known, ``patience`` harmful teleports in a row end the habit; ``inf``
    does not watch, and neither do processes that train one model together. Without a loss the outputs are looked at.

    ``symmetry``: of the model, exact sites only; permutations are left out. ``objective``, ``direction``, ``steps``,
    ``size``, ``tolerance``, ``generator``: see :func:`meta_teleport.teleport`. ``schedule``: a number k (every k
    steps), a list of steps, or a schedule of ``meta_teleport.optimizers.schedules``; with an empty list (the default)
    the wrapper is bitwise the base optimizer and teleports only when :meth:`teleport` is called. ``loss(model, batch)``
    and ``batches()``, which gives the batch to teleport on: gauges and random elements need neither, but for the drift.

    A learned rule (``meta_teleport.load``) may stand in place of an objective: at a teleport it is shown gradients and
    loss, and moves the model by its elements; its update is not used. With ``loss`` and ``batches`` these are computed
    there. Without, they are those of the base optimizer's last step, at the weights before it: the loss that
    ``step(closure)`` returns, or that was reported before ``step``. The state of the rule moves along with a teleport.

    ``state`` says what becomes of the base optimizer's state at a teleport: *transport* moves it along (see the module
    ``transport``), *reset* makes the state of the moved parameters new, step counts included, *keep* leaves it.
    Bases that keep weights in their state (slow weights, means of weights) need *reset*; those that wrap another
    optimizer and do are refused (Lookahead). Means of weights outside (EMA, SWA) must begin anew after a teleport.

    The base optimizer may own fewer parameters than the model has, as Muon does, beside a second optimizer. A parameter
    that a site moves is moved whoever owns it; what another optimizer remembers of it stays as it is.

    Under ``DistributedDataParallel`` (give the bare model here) all processes move alike, bitwise: by the mean of their
    losses, each on a batch of its own, when the schedule of the first one says so. Where gradients are averaged by
    other means, give the ``process_group``; processes with models of their own need none. FSDP is refused.

    ``teleports`` lists one :class:`TeleportRecord` per teleport tried, in order. A model that has changed meanwhile
    (layers frozen or added) and cannot move has a record with the reason; where parameters were replaced or converted,
    or what a site moves has sparse gradients, the step is refused. Hooks run around the base optimizer's step, before
    the teleport. Where a teleport is not accepted or fails by an exception, parameters, gradients and state are bitwise
    what they were before it. A copy has a copy of the model: ``copy.deepcopy((model, optimizer))`` keeps the two
    together. It can be pickled where ``loss`` and ``batches`` can. Torch's own LBFGS cannot step after either.

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
        patience: float = PATIENCE,
        lookahead: int = 0,
        generator: torch.Generator | None = None,
        process_group: Processes = None,
    ) -> None:
        require_base(base_optimizer, state)
        require_loss(objective, loss, batches)
        limits = Limits(tolerance, imbalance)
        require_movable(model)
        trainable_sites(model, symmetry)
        choice = as_choice(objective, model, symmetry)
        super().__init__(base_optimizer)
        self.model, self.symmetry, self.schedule = model, symmetry.continuous, as_schedule(schedule)
        self._batches = batches and partial(next_batch, batches)
        self._generator, self._ranks = generator, Ranks(model, process_group)
        self._progress, self._history, self._aftermath = Progress(), History(), Aftermath(model, patience)
        self._clock, self._known = Clock(), {name for name, _ in model.named_parameters()}
        self._view = RuleView(choice if isinstance(choice, Proposer) else None, model, batches is not None, self._ranks)
        self._balance = Balance(model, self.symmetry, inf if is_gauge(choice) else limits.imbalance)
        settings = dict(direction=direction, steps=steps, tolerance=tolerance, loss=loss, generator=generator)
        ahead = Lookahead(base_optimizer, model, loss, self._batches, lookahead, self._ranks)
        self._search = Search(model, self.symmetry, choice, size, self._balance, ahead, self._ranks, **settings)
        self._memory = Memory(base_optimizer, model, self.symmetry, state)
        self._returned = ReturnedLoss(model)
        run_as_written(self, "step", "report", "teleport")

    @property
    def teleports(self) -> list[TeleportRecord]:
        """One record per teleport that was tried, in order."""
        return self._history.records

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base optimizer, and a teleport if one is due after it (or before the first step). One with
        lr 0 and no gradient but zeros, which only fills states, does not count."""
        if closure is None and only_fills_states(self, "teleportation"):
            self._view.begin()
            return super().step()
        closure = self._memory.checked(closure, begun=self._progress.step > 0)
        if self._progress.step == 0:
            self._teleport_if_due()
        self._view.before_step()
        value = super().step(closure)
        self._progress.step += 1
        if self._progress.step == 1:
            require_none_kept(self.base, self._memory.state)
        returned = self._returned.take()
        if isinstance(value, float) or (isinstance(value, Tensor) and value.numel() == 1):
            self.report(loss=value)
        elif returned is not None and self._progress.loss is None:
            self.report(loss=returned)
        self._teleport_if_due()
        return value

    step.hooked = True  # type: ignore[attr-defined]  # hooks run in the base optimizer's step, and once

    def report(self, *, loss: Tensor | float | None = None, validation: Tensor | float | None = None) -> None:
        """Tells the training or validation loss at the present weights, which plateaus and signs go by. What
        ``step(closure)`` returns is known already. A training loss that is a tensor is not read before it is needed."""
        if loss is not None:
            loss = loss.detach() if isinstance(loss, Tensor) else loss
            self._progress.report(loss)
            self._history.watch(self._progress)
            if self._ranks.group is None:  # each process has losses of its own, and all must go the same way
                self._sign(self._aftermath.report(loss))
        if validation is not None:
            self._history.validate(float(validation.detach() if isinstance(validation, Tensor) else validation))

    def teleport(self) -> TeleportRecord:
        """Teleports now, due or not, and records it."""
        started = perf_counter()
        require_none_kept(self.base, self._memory.state)
        fault = model_fault(self.model, self.symmetry, self.param_groups, self._known)
        record = refused(fault, self.symmetry, self._progress.step) if fault else self._searched(started)
        self._history.add(record, self._progress)
        return record

    def _searched(self, started: float) -> TeleportRecord:
        batch = None if self._batches is None else self._batches()
        self._view.show(self._progress)
        self._sign(self._aftermath.judge())
        found = self._search(batch, self._aftermath.habit.length, self._memory.repeat)
        writes = [] if found.reason else self._memory.moved(found.elements)
        reason = found.reason or writes_fault(writes)
        found = replace(found, accepted=not reason, reason=reason)
        if found.accepted:
            self._aftermath.keep()
            self._memory.write([*found.writes(self.model), *writes])
            self._view.accept()
            self._aftermath.habit.teleported()
        return describe(found, self.symmetry, self._progress.step, perf_counter() - started, self._balance.spent)

    def _sign(self, outcome: Outcome) -> None:
        """Records what came of the last teleport; where it was undone, the optimizer begins anew."""
        if outcome == "undone":
            self._memory.clear()
        if outcome:
            self._history.sign(UNDONE if outcome == "undone" else HARM)
            self._aftermath.warn_of_the_end()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The base optimizer's. Raises ``UserError`` for tensors that are not parameters of the model."""
        parameters = param_group["params"]
        param_group["params"] = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        names_of(self.model, [param_group])
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's and, as ``teleportation``, ours: one that loads them goes on bitwise as this one."""
        self._timed()
        ours = {name: part.state_dict() for name, part in self._parts.items()}
        ours["generator"] = None if self._generator is None else self._generator.get_state()
        return embed(self.base.state_dict(), "teleportation", ours)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave; or the base optimizer's state alone, if that is all there is."""
        base, ours = extract(state_dict, "teleportation")
        self.base.load_state_dict(base)
        self._memory.settle()
        if ours is None:
            return
        ours = teleportation_of(ours)
        for name, part in self._parts.items():
            part.load_state_dict(ours[name])
        self._clock = Clock(self._progress.elapsed)
        if self._generator is not None and ours["generator"] is not None:
            self._generator.set_state(ours["generator"].cpu())

    @property
    def _parts(self) -> dict[str, Any]:
        """What has a state of its own, by its name in ours."""
        parts = {"progress": self._progress, "schedule": self.schedule, "history": self._history, "rule": self._view}
        return {**parts, "balance": self._balance, "habit": self._aftermath.habit}

    def _teleport_if_due(self) -> None:
        group = None if self.schedule.counts else self._ranks.group
        due = decided(lambda: self.schedule.due(self._timed()), self.model, group)
        self._progress.loss = None
        if due and self._aftermath.habit.allows():
            self.teleport()

    def _timed(self) -> Progress:
        """The record, with the seconds until now."""
        self._progress.elapsed = self._clock()
        return self._progress
