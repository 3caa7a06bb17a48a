"""A rule that chooses teleports alone: its elements between the steps of any torch optimizer, and what it is shown."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.optimizers.bound_rule import BoundRule
from meta_teleport.params import Params, value_and_grad
from meta_teleport.rules.rule import Rule
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.ascent import identities
from meta_teleport.teleportation.conditions import trainable_sites
from meta_teleport.teleportation.objectives import Loss
from meta_teleport.teleportation.progress import Progress
from meta_teleport.teleportation.proposer import Found, Proposer
from meta_teleport.teleportation.ranks import Ranks

Shown = tuple[Params, Params, Tensor | float]


class RuleProposer(Proposer):
    """The elements of ``rule`` for ``model``; its updates are not used.

    When to teleport is not the rule's to say: a rule that moves at every n-th step only, or up to a horizon, is asked
    as if it were time. Its state goes on, and its running means see a gradient, when it is asked.

    Raises ``UserError`` where :class:`BoundRule` does, and for a rule that proposes no elements.
    """

    def __init__(self, rule: Rule, model: nn.Module, symmetry: Symmetry) -> None:
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._bound = BoundRule(rule, model, parameters, trainable_sites(model, symmetry), Ranks(model))
        self._bound.rule.scheduled = False
        if rule.experience is not None:
            rule.experience.warn_of(model, self._bound.symmetry)
        self._progress = Progress()
        self._params: Params | None = None
        self._elements: tuple[tuple[Tensor, Tensor], ...] = ()

    def join(self, ranks: Ranks) -> None:
        self._bound.ranks = ranks

    def look(self, progress: Progress, params: Params | None = None) -> None:
        if params is not None and progress.latest is None:
            raise UserError(
                "the rule reads the loss: pass a closure to step, call report(loss=...) before step, or give loss=... "
                "and batches=..."
            )
        self._progress, self._params = progress, params

    def propose(self, symmetry: Symmetry, params: Params, loss: Loss) -> Found:
        bound = self._bound
        fault = bound.fault()
        if params.keys() != bound.parameters.keys() or symmetry.sites != bound.symmetry.sites:
            fault = "other parameters are trainable than when the rule began: make a wrapper for these"
        if fault:
            return Found(params, identities(symmetry, params), fault=fault)
        seen, gradients, value = self._shown() or self._evaluate(params, loss)
        observed = bound.loss(value)
        if fault := bound.unreadable(gradients, observed):
            return Found(params, identities(symmetry, params), fault=fault)
        proposal = bound.propose(seen, gradients, observed, self._progress.step)
        bound.release()
        if not proposal.algebra:
            raise UserError(f"this {type(bound.rule).__name__} proposes updates only: choose a rule with elements")
        self._elements = symmetry.exp_pairs(proposal.algebra)
        return Found(symmetry.move(params, self._elements), [g for g, _ in self._elements])

    def begin(self) -> None:
        self._bound.begin()

    def accept(self) -> None:
        self._bound.transport(self._elements)

    def state_dict(self) -> dict[str, Any]:
        return {"state": self._bound.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._bound.load_state_dict(state["state"])

    def _shown(self) -> Shown | None:
        """Weights, gradients there and loss there, if they are known."""
        if self._params is None or self._progress.latest is None:
            return None
        return self._params, self._bound.gradients(), self._progress.latest

    def _evaluate(self, params: Params, loss: Loss) -> Shown:
        """Gradients and loss on the batch that the teleport is for."""
        with self._bound.hooks.reading():
            value, gradients = value_and_grad(loss, params)
        return params, gradients, value


class RuleView:
    """The gradients of the last step, the weights before it and the loss there; or, if the rule ``evaluates`` a loss of
    its own or reads none, nothing. Does nothing without a ``proposer``."""

    def __init__(self, proposer: Proposer | None, model: nn.Module, evaluates: bool, ranks: Ranks) -> None:
        if proposer is not None:
            proposer.join(ranks)
        self.proposer, self.model, self.evaluates = proposer, model, evaluates
        self._before: Params | None = None

    def before_step(self) -> None:
        """Shows the gradients, and keeps the weights that they belong to."""
        if self.proposer is None:
            return
        self.proposer.watch()
        if self.proposer.reads_loss and not self.evaluates:
            self._before = self._parameters()

    def show(self, progress: Progress) -> None:
        """Shows the rule what is known."""
        if self.proposer is None or not self.proposer.reads_loss:
            return
        if self.evaluates:
            self.proposer.look(progress)
            return
        before, self._before = self._before, None
        seen = replace(progress, step=progress.step - (before is not None))
        self.proposer.look(seen, before or self._parameters())

    def begin(self) -> None:
        """Makes the state of the rule, if there is none."""
        if self.proposer is not None:
            self.proposer.begin()

    def accept(self) -> None:
        """The elements of the rule have acted."""
        if self.proposer is not None:
            self.proposer.accept()

    def state_dict(self) -> dict[str, Any] | None:
        """The state of the rule, None without one."""
        return None if self.proposer is None else self.proposer.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Takes over what :meth:`state_dict` gave."""
        if self.proposer is not None and state is not None:
            self.proposer.load_state_dict(state)

    def _parameters(self) -> Params:
        return {n: p.detach().clone().unsqueeze(0) for n, p in self.model.named_parameters() if p.requires_grad}
