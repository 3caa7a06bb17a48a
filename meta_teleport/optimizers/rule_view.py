"""What a learned rule is shown before a teleport between the steps of another optimizer."""

from typing import Any

from torch import Tensor, nn

from meta_teleport.params import Params
from meta_teleport.teleportation.strategies import Proposer


class Sight:
    """The gradients of the last step, the weights before it and the loss there; or, if the rule ``evaluates`` a loss of
    its own, nothing. Does nothing without a ``proposer``."""

    def __init__(self, proposer: Proposer | None, model: nn.Module, evaluates: bool) -> None:
        self.proposer, self.model, self.evaluates = proposer, model, evaluates
        self._before: Params | None = None
        self._loss: Tensor | float | None = None

    def report(self, loss: Tensor | float) -> None:
        """The loss of the gradients that the next step uses, or that the last one has used."""
        self._loss = loss

    def before_step(self) -> None:
        """Keeps the weights that the gradients belong to."""
        if self.proposer is not None and not self.evaluates:
            self._before = self._parameters()

    def show(self, taken: int) -> None:
        """Shows the rule what is known after ``taken`` steps."""
        if self.proposer is None:
            return
        if self.evaluates:
            self.proposer.look(taken)
            return
        before, self._before = self._before, None
        self.proposer.look(taken - (before is not None), before or self._parameters(), self._loss)

    def accept(self) -> None:
        """The elements of the rule have acted."""
        if self.proposer is not None:
            self.proposer.accept()

    def state_dict(self) -> dict[str, Any]:
        """The state of the rule, and the loss as a number."""
        return {
            "rule": None if self.proposer is None else self.proposer.state_dict(),
            "loss": None if self._loss is None else float(self._loss),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self._loss = state["loss"]
        if self.proposer is not None and state["rule"] is not None:
            self.proposer.load_state_dict(state["rule"])

    def _parameters(self) -> Params:
        return {n: p.detach().clone().unsqueeze(0) for n, p in self.model.named_parameters() if p.requires_grad}
