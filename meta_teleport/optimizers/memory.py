"""What an optimizer remembers, where its model teleports."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from meta_teleport.errors import UserError
from meta_teleport.optimizers.requirements import Place, held_in, names_of, optimizers_in
from meta_teleport.optimizers.transport import moved_gradients, moved_state, require_dense, reset_state
from meta_teleport.params import Writes, write_at_once
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.acceptance import all_finite
from meta_teleport.teleportation.conditions import trainable_sites

Closure = Callable[[], Any]


class Memory:
    """The gradients in ``.grad``, which move with the weights, and the state of the ``optimizer``, of which ``state``
    says what becomes: *transport* moves it, *reset* begins it anew, *keep* leaves it. Raises ``UserError`` where
    :meth:`names` does."""

    def __init__(self, optimizer: Optimizer, model: nn.Module, symmetry: Symmetry, state: str) -> None:
        self.optimizer, self.model, self.symmetry, self.state = optimizer, model, symmetry, state
        self._names = self.names()
        self.settle()

    def settle(self) -> None:
        """The parameters are where the state is to be."""
        self._places = {p: Place.of(p) for p in held_in(self.optimizer.param_groups)}

    def checked(self, closure: Closure | None, begun: bool) -> Closure | None:
        """The closure of a step that is about to be taken; its gradients are looked at before the optimizer goes by
        them, and those that are there already where there is no closure.

        Raises ``UserError`` for a sparse gradient of what a site moves, for a parameter that is no longer the model's,
        and for one that has another shape, precision or device than its state. Before the optimizer has ``begun`` all
        may go to another device or precision together.
        """
        self._require_places(begun)
        if closure is None:
            require_dense(self._names, self.symmetry)
            return None

        def evaluate() -> Any:
            value = closure()
            require_dense(self._names, self.symmetry)
            return value

        return evaluate

    def _require_places(self, begun: bool) -> None:
        present, held = set(self.model.parameters()), held_in(self.optimizer.param_groups)
        if gone := [self._names[p] for p in held if p not in present and p in self._names]:
            raise UserError(
                f"parameter '{gone[0]}' is no longer the model's, which has another one or none (a new nn.Parameter, "
                "load_state_dict with assign=True): make a new optimizer of the model as it is"
            )
        self._names, here = names_of(self.model, self.optimizer.param_groups), {p: Place.of(p) for p in held}
        then = {p: self._places.get(p, place) for p, place in here.items()}
        moved = [p for p in held if here[p] != then[p]]
        reshaped = any(here[p].shape != then[p].shape for p in moved)
        together = len(moved) == len(held) and len({place.device for place in here.values()}) == 1
        if moved and (begun or reshaped or not together):
            first = moved[0]
            raise UserError(
                f"parameter '{self._names[first]}' is {here[first]}, and was {then[first]} when this optimizer was "
                "made or loaded: put it back, or make a new optimizer of the model as it is"
            )
        self._places = here

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
