"""What an optimizer remembers, where its model teleports."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from meta_teleport.optimizers.requirements import names_of, optimizers_in
from meta_teleport.optimizers.transport import moved_gradients, moved_state, reset_state
from meta_teleport.params import Writes, write_at_once
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.acceptance import all_finite
from meta_teleport.teleportation.conditions import trainable_sites


class Memory:
    """The gradients in ``.grad``, which move with the weights, and the state of the ``optimizer``, of which ``state``
    says what becomes: *transport* moves it, *reset* begins it anew, *keep* leaves it. Raises ``UserError`` where
    :meth:`names` does."""

    def __init__(self, optimizer: Optimizer, model: nn.Module, symmetry: Symmetry, state: str) -> None:
        self.optimizer, self.model, self.symmetry, self.state = optimizer, model, symmetry, state
        self.names()

    def moved(self, elements: Sequence[Tensor]) -> Writes:
        """What to write where the ``elements`` act, one per site: pairs of a tensor and its new value."""
        names = self.names()
        writes = moved_gradients(names, self.symmetry, tuple(elements))
        if self.state == "transport":
            writes += moved_state(self.optimizer, names, self.symmetry, tuple(elements))
        return writes

    def write(self, writes: Writes) -> None:
        """What acting with the elements comes to: parameters, gradients and state, all of it or nothing."""
        write_at_once(writes)
        if self.state == "reset":
            for optimizer in optimizers_in(self.optimizer):
                reset_state(optimizer, self.names(), trainable_sites(self.model, self.symmetry))

    def clear(self) -> None:
        """Begins the whole state anew and drops the gradients."""
        names = self.names()
        for optimizer in optimizers_in(self.optimizer):
            reset_state(optimizer, names)
        for p in names:
            p.grad = None

    def names(self) -> dict[Tensor, str]:
        """The names of the model's parameters. Raises ``UserError`` if the optimizer holds a tensor that is not among
        them."""
        return names_of(self.model, self.optimizer.param_groups)


def writes_fault(writes: Writes) -> str:
    """Why the values cannot be written; empty if they can."""
    finite = all(all_finite(value) for _, value in writes)
    return "" if finite else "a gradient or the optimizer's state did not stay finite"
