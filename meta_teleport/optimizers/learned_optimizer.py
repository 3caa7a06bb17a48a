"""A rule as a ``torch.optim.Optimizer`` for a model of one's own."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from meta_teleport.errors import UserError
from meta_teleport.optimizers.bound_rule import PATIENCE, BoundRule, still
from meta_teleport.optimizers.compilation import run_as_written
from meta_teleport.optimizers.given_loss import Closure, ClosureLoss, GivenLoss
from meta_teleport.optimizers.requirements import names_of
from meta_teleport.optimizers.saved_states import embed, extract, only_fills_states
from meta_teleport.params import Params, write_at_once
from meta_teleport.rules.backtracking import lengths
from meta_teleport.rules.experience import Fall
from meta_teleport.rules.rule import Rule
from meta_teleport.safeguards.witness import Witness
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.acceptance import LIMIT, Limits, teleported
from meta_teleport.teleportation.conditions import require_linear, trainable_parameters
from meta_teleport.teleportation.ranks import Processes, Ranks


class LearnedOptimizer(Optimizer):
    """Algorithm 1 on one's own model: ``rule`` reads gradients and loss, proposes f and T per site, and

        w <- exp(T) . ((1 - lr weight_decay) w + lr f)

    so ``lr`` is a factor on the learned update, 1 for the rule as it was trained, and learning rate schedulers scale
    it; teleports, which leave the loss alone, are not scaled. ``weight_decay`` is decoupled, the part of w that goes
    per step at lr 1. Both may differ between parameter groups.

    ``step(loss)`` takes the loss tensor. Gradients that have come since the last step, or since the optimizer was made,
    are used as they are (``loss.backward()``, clipping, losses that accumulate); where none have, it clears the old
    ones and calls ``backward`` itself. ``report(loss=...)`` and then ``step()`` is the same for trainers that pass no
    loss on; a loss that the model returns, as ``loss`` of its output, is known by itself. ``step(closure)`` takes a
    function as any torch optimizer does. All return the loss, and ``.grad`` holds the gradients at the weights before
    the step. Rules that backtrack take a closure only, and evaluate it again, more often where lr f raises the loss.

    ``symmetry``: exact sites; those with a parameter that is frozen, or in no group, are left out. ``params``:
    parameter groups as for any torch optimizer, by default all trainable parameters. A parameter in no group stays
    where it is, and so does one without a gradient at this step, with its sites. What was frozen cannot join later.

    A teleport is undone (``rejected`` counts them) if a parameter does not stay finite, if rounding could move the loss
    by more than ``tolerance`` (eps times the condition number of an element), and, where step is given a closure, if
    the loss on its batch does move by more. That takes two more evaluations of the closure, on the same batch and in
    full precision; without one the outputs are looked at now and then (:class:`Witness`), which do not show what a loss
    reads of weights or activations. ``checked=False`` leaves both out. Rules that read log L refuse a negative loss.

    Where the rule reads activations, hooks keep the second moments of the last forward pass in training mode;
    :meth:`close` removes them. The rule is copied, in the model's precision and on its device. Warned of, once, are a
    horizon after which a rule stands still, activations that no hook sees, a model made of what the rule has not met in
    training, and a loss that does not fall at first. Compile the model after this optimizer is made.

    Under ``DistributedDataParallel`` (give the bare model) losses and activations are those of all processes; where
    gradients are averaged by other means, give the ``process_group``. Sharded parameters (FSDP) are refused.

    Raises ``UserError`` for models that cannot move, parameters of another model, sites that are not exact, rules that
    are built for another network or read single activations, and settings that are none.
    """

    def __init__(
        self,
        rule: Rule,
        model: nn.Module,
        symmetry: Symmetry,
        params: Iterable[Any] | None = None,
        *,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        tolerance: float = LIMIT,
        checked: bool = True,
        process_group: Processes = None,
    ) -> None:
        self._limits = Limits(tolerance)
        trainable_parameters(model)
        require_linear(symmetry.continuous)
        symmetry.continuous.require_fit(model)
        self.model, self.step_count, self.rejected, self.skipped, self._in_a_row = model, 0, 0, 0, 0
        self._rule, self._given, self._begun, self._checked = rule, symmetry.continuous, False, checked
        self._ranks, self._fall = Ranks(model, process_group), Fall(watched=rule.experience is not None)
        self._given_loss, self._witness = GivenLoss(model), Witness(model, tolerance)
        chosen = [p for p in model.parameters() if p.requires_grad] if params is None else params
        super().__init__(chosen, {"lr": lr, "weight_decay": weight_decay})
        self._bound, self._begun = self._bind(), True
        run_as_written(self, "step", "report")
        if rule.experience is not None:
            rule.experience.warn_of(model, self.symmetry)
        self._given_loss.close(self._bound.parameters.values())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    @property
    def symmetry(self) -> Symmetry:
        """The sites that teleport."""
        return self._bound.symmetry

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """One more group. Raises ``UserError`` for tensors that are not parameters of the model, for settings below
        zero, and after the first step, as recurrent states have a row per parameter."""
        if self.step_count:
            raise UserError("groups cannot be added after the first step: make an optimizer with all of them")
        super().add_param_group(param_group)
        for name in ("lr", "weight_decay"):
            if not float(self.param_groups[-1][name]) >= 0:
                raise UserError(f"{name}={self.param_groups[-1][name]}: give a number that is not negative")
        if self._begun:
            self._bound.hooks.close()
            self._bound = self._bind()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, and forgets the loss that they are of."""
        super().zero_grad(set_to_none)
        self._given_loss.returned.take()

    @torch.no_grad()
    def step(self, closure: Tensor | Closure | None = None) -> Any:
        """One step; ``closure`` is the loss, or a function that computes it and calls backward. Returns the loss.

        A step with lr 0 and no gradient but zeros is none. Where the loss or a gradient is not finite the step is
        skipped, counted in ``skipped``, and warned of once. Raises ``UserError``, before anything has moved, where no
        loss is known, for one that is not one number, and if there are no gradients.
        """
        bound = self._bound
        if closure is None and only_fills_states(self, "learned"):
            bound.begin()
            return None
        if fault := bound.fault():
            raise UserError(fault)
        bound.warn_at_the_horizon(self.step_count)
        loss, again = self._given_loss.evaluate(closure, bound.parameters.values(), self.zero_grad)
        if bound.rule.backtracking and again is None:
            raise UserError("this rule shortens updates that raise the loss: call step(closure), so that it can look")
        gradients, value = bound.gradients(), bound.loss(loss)
        if fault := bound.unreadable(gradients, value):
            self._skip(fault)
        else:
            self._fall.watch(value, self.step_count)
            self._move(gradients, value, again)
        self._given_loss.close(bound.parameters.values())
        return loss

    def report(self, *, loss: Tensor | float) -> None:
        """Tells the loss of the gradients that are in ``.grad``, for a ``step()`` without arguments."""
        self._given_loss.report(loss)

    def close(self) -> None:
        """Removes the hooks from the model: activations, and losses that the model returns, are unknown from here."""
        self._bound.hooks.close()
        self._given_loss.returned.close()
        self._witness.close()

    def state_dict(self) -> dict[str, Any]:
        """Groups and, as ``learned``, step counts and the state of the rule: one that loads them goes on bitwise."""
        counts = {"taken": self.step_count, "undone": self.rejected, "skipped": self.skipped}
        return embed(super().state_dict(), "learned", {**counts, "state": self._bound.state_dict()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave. Raises ``UserError`` if that was of another rule or model."""
        groups, learned = extract(state_dict, "learned")
        if learned is None:
            raise UserError("this state dict is of another optimizer: give one that a learned optimizer has made")
        state = self._bound.checked_state(learned["state"])  # all is checked before anything changes
        super().load_state_dict(groups)
        self._bound.state = state
        self.step_count, self.rejected, self.skipped = learned["taken"], learned["undone"], learned.get("skipped", 0)

    def _bind(self) -> BoundRule:
        """The rule at the parameters that are in a group and not empty, and at the sites that move no others."""
        names_of(self.model, self.param_groups)
        known = dict(self.model.named_parameters())
        held = {p for group in self.param_groups for p in group["params"]}
        parameters = {name: p for name, p in known.items() if p in held and p.requires_grad and p.numel()}
        frozen = {name: p for name, p in known.items() if p in held and not p.requires_grad}
        if not parameters:
            raise UserError("no group holds a trainable parameter: set requires_grad on those that may move")
        free = tuple(site for site in self._given.sites if set(site.parameters) <= parameters.keys())
        return BoundRule(self._rule, self.model, parameters, Symmetry(free), self._ranks, frozen)

    def _skip(self, fault: str) -> None:
        """Counts a step that is not taken, and warns of the first."""
        self.skipped += 1
        self._bound.hooks.clear()
        if self.skipped == 1:
            self._bound.warn_of_skipping(fault)

    def _move(self, gradients: Params, value: Tensor, closure: Closure | None) -> None:
        """Update and teleport. Where anything raises, the rule's state is that from before."""
        bound, kept = self._bound, self._bound.state
        try:
            with torch.autocast(bound.like.device.type, enabled=False):
                params = bound.params()
                proposal = bound.propose(params, gradients, value, self.step_count)
                length = 1.0
                if closure and bound.rule.backtracking:
                    length = self._length(params, gradients, proposal.update, value, closure)
                if proposal.algebra:
                    moved = {name: p.clone() for name, p in params.items()}
                    self._update(moved, proposal.update, length)
                    moved = self._teleported(moved, proposal.algebra, closure)
                    bound.release()
                    write_at_once([(p, moved[name]) for name, p in params.items()])
                else:
                    bound.release()
                    self._update(params, proposal.update, length)
        except BaseException:
            bound.state = kept
            raise
        self.step_count += 1

    def _settings(self) -> dict[str, tuple[float, float]]:
        """lr and weight decay by name; both 0 for what stays."""
        found = {p: (float(g["lr"]), float(g["weight_decay"])) for g in self.param_groups for p in g["params"]}
        return {name: (0.0, 0.0) if still(p) else found[p] for name, p in self._bound.parameters.items()}

    def _update(self, params: Params, update: Params, length: float) -> None:
        """Weight decay and ``length`` times the update, in place."""
        for name, (lr, decay) in self._settings().items():
            if decay:
                params[name].mul_(1 - lr * decay)
            if lr * length:  # an update that is not finite has length 0, and 0 times it is not 0
                params[name].add_(update[name], alpha=lr * length)

    def _length(self, params: Params, gradients: Params, update: Params, loss: Tensor, closure: Closure) -> float:
        """c for a rule that backtracks: c lr f does not raise the loss."""
        settings = self._settings()
        scaled = {name: settings[name][0] * f for name, f in update.items()}
        with self._bound.hooks.reading(False):
            return float(lengths(scaled, params, gradients, loss, self._loss_at(closure)))

    def _loss_at(self, closure: Closure) -> ClosureLoss:
        return ClosureLoss(self.model, partial(self._given_loss.of, closure), self._bound.parameters, self._ranks)

    def _teleported(self, updated: Params, algebra: tuple[Tensor, ...], closure: Closure | None) -> Params:
        """The parameters moved by the proposed elements, with the state of the rule; or as they were."""
        bound = self._bound
        loss = self._loss_at(closure) if closure and self._checked else None
        with bound.hooks.reading(False):
            found = teleported(bound.symmetry, updated, bound.resting(algebra), self._limits, loss)
            if found and loss is None and self._checked:
                acting = [g for g, _ in found[1]]
                if self._witness.fault(bound.symmetry, updated, found[0], acting, self._ranks.group):
                    found = None
        if found is None:
            self._reject(loss is not None)
            return updated
        self._in_a_row, (moved, elements) = 0, found
        bound.transport(elements)
        return moved

    def _reject(self, looked: bool) -> None:
        """Counts a teleport that is not carried out, and warns where a closure was looked at and none ever is."""
        self.rejected, self._in_a_row = self.rejected + 1, self._in_a_row + looked
        if looked and self._in_a_row == PATIENCE:
            self._bound.warn_of_undoing()
