"""What a learned rule is shown before a teleport between the steps of another optimizer."""

from dataclasses import replace
from typing import Any

from torch import nn

from meta_teleport.params import Params
from meta_teleport.teleportation.progress import Progress
from meta_teleport.teleportation.strategies import Proposer


class RuleView:
    """The gradients of the last step, the weights before it and the loss there; or, if the rule ``evaluates`` a loss of
    its own, nothing. Does nothing without a ``proposer``."""

    def __init__(self, proposer: Proposer | None, model: nn.Module, evaluates: bool) -> None:
        self.proposer, self.model, self.evaluates = proposer, model, evaluates
        self._before: Params | None = None

    def before_step(self) -> None:
        """Keeps the weights that the gradients belong to."""
        if self.proposer is not None and not self.evaluates:
            self._before = self._parameters()

    def show(self, progress: Progress) -> None:
        """Shows the rule what is known."""
        if self.proposer is None:
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
