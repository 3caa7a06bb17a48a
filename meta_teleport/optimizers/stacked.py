"""One optimizer, and the copies of a network that it trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from meta_teleport.errors import UserError
from meta_teleport.optimizers.transport import moved_state, reset_state
from meta_teleport.params import Params
from meta_teleport.symmetry.symmetry import Symmetry

Factory = Callable[[list[nn.Parameter]], Optimizer]


def per_copy(factory: Factory) -> Factory:
    """Marks the factory of an optimizer that works on whole matrices, such as Muon: in place of the stacked parameters
    ``(copies, *shape)`` it is given those ``(*shape)`` of one copy after the other. SGD, Adagrad, RMSprop and the Adam
    family work entry by entry, need no mark, and are faster without."""

    def build(parameters: list[nn.Parameter]) -> Optimizer:
        return factory(parameters)

    build.per_copy = True  # type: ignore[attr-defined]
    return build


@dataclass(frozen=True)
class StackedOptimizer:
    """An optimizer and the copies ``rows`` that it trains.

    Its ``parameters`` share their memory with those of all copies: one dict of stacked tensors ``(copies, *shape)``, or
    one dict per copy.
    """

    rows: slice
    optimizer: Optimizer
    parameters: tuple[dict[str, nn.Parameter], ...]
    stacked: bool

    @classmethod
    def of(cls, params: Params, rows: slice, factory: Factory) -> Self:
        """The optimizer that ``factory`` makes of the ``rows`` of ``params``. Raises ``UserError`` for L-BFGS."""
        stacked = not getattr(factory, "per_copy", False)
        places: list[slice | int] = [rows] if stacked else list(range(rows.start, rows.stop))
        parameters = tuple({name: nn.Parameter(p.detach()[at]) for name, p in params.items()} for at in places)
        optimizer = factory([p for own in parameters for p in own.values()])
        if isinstance(optimizer, LBFGS):
            raise UserError("L-BFGS takes all its parameters for those of one network: train its runs one by one")
        return cls(rows, optimizer, parameters, stacked)

    def step(self, gradients: Mapping[str, Tensor | None]) -> None:
        """One step, with the gradients of all copies; None for parameters that the loss does not depend on."""
        for number, parameters in enumerate(self.parameters):
            for name, parameter in parameters.items():
                gradient, at = gradients[name], self.rows if self.stacked else self.rows.start + number
                # fused kernels take gradients to lie in memory as parameters do
                parameter.grad = None if gradient is None else gradient[at].contiguous()
        self.optimizer.step()

    def reset(self, symmetry: Symmetry) -> None:
        """Makes the state of what the symmetry moves what it was before the first step."""
        for parameters in self.parameters:
            reset_state(self.optimizer, {p: name for name, p in parameters.items()}, symmetry)

    @torch.no_grad()
    def transport(self, symmetry: Symmetry, elements: tuple[Tensor, ...]) -> None:
        """Moves the state along, by one element ``(copies, ...)`` per site. Raises ``UserError`` if it has no law."""
        for number, parameters in enumerate(self.parameters):
            own = elements if self.stacked else tuple(g[number] for g in elements)
            names: dict[Tensor, str] = {p: name for name, p in parameters.items()}
            for tensor, value in moved_state(self.optimizer, names, symmetry, own):
                tensor.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's state, by the number of the parameter and the name of the entry."""
        entries = self.optimizer.state_dict()["state"].items()
        return {f"{i}.{key}": v for i, entry in entries for key, v in entry.items() if isinstance(v, Tensor)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what :meth:`state` gave."""
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            entries.setdefault(int(index), {})[key] = tensor.clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
