"""The contract of a strategy: what it finds, and what it keeps in mind between two teleports."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import nan
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from meta_teleport.params import Params
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.objectives import Loss
from meta_teleport.teleportation.progress import Progress
from meta_teleport.teleportation.ranks import Ranks


class Found(NamedTuple):
    """What a strategy chose: moved parameters ``(1, *shape)`` and one element ``(1, ...)`` per site that gives them;
    the objective before and after, where there is one; and why nothing was found, if so."""

    params: Params
    elements: Sequence[Tensor]
    before: float = nan
    after: float = nan
    fault: str = ""


Strategy = Callable[[Symmetry, Params, Loss], Found]


class Proposer(ABC):
    """A strategy with a memory, such as a learned rule: it looks, proposes, is told when its elements have acted. What
    it does not need to know it need not hear."""

    reads_loss: ClassVar[bool] = True
    """Whether a proposal needs the loss, and the weights that the last gradients belong to."""
    piles_up: ClassVar[bool] = True
    """Whether one teleport after the other may lead ever further away."""

    def join(self, ranks: Ranks) -> None:  # noqa: B027
        """Before anything else: these processes teleport together."""

    def begin(self) -> None:  # noqa: B027
        """Makes the memory, where there is none."""

    def watch(self) -> None:  # noqa: B027
        """Before every step of the base optimizer: the gradients in ``.grad`` are those that it steps by."""

    def look(self, progress: Progress, params: Params | None = None) -> None:  # noqa: B027
        """Before a proposal. The gradients in ``.grad`` are those at ``params``, after ``progress.step`` steps, of the
        loss ``progress.latest``; where no ``params`` are given, the loss is evaluated."""

    @abstractmethod
    def propose(self, symmetry: Symmetry, params: Params, loss: Loss) -> Found:
        """The strategy; the memory goes on."""

    @abstractmethod
    def accept(self) -> None:
        """The elements proposed last have acted: the memory moves along."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The memory as plain numbers and tensors."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""


@runtime_checkable
class ProposesElements(Protocol):
    """What has a proposer for a model and its symmetry: every rule of ``meta_teleport.learned``."""

    def proposer(self, model: nn.Module, symmetry: Symmetry) -> Proposer:
        """A new one."""
