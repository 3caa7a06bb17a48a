"""One setting of an optimizer, and the copies of a network that it trains."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
)

from meta_teleport.errors import UserError
from meta_teleport.optimizers.requirements import Place, new_parameter_fault
from meta_teleport.optimizers.transport import moved_state, reset_state
from meta_teleport.params import Params
from meta_teleport.symmetry.symmetry import Symmetry

Factory = Callable[[list[nn.Parameter]], Optimizer]


ENTRYWISE: tuple[type[Optimizer], ...] = (
    SGD,
    Adagrad,
    RMSprop,
    Adam,
    AdamW,
    NAdam,
    RAdam,
    Adamax,
    Adadelta,
    ASGD,
    Rprop,
)
"""What works entry by entry, so that it does to stacked copies what it does to each of them."""


def per_copy(factory: Factory) -> Factory:
    """Marks the factory of an optimizer that is to be made for every copy, of its parameters ``(*shape)``, in place of
    once for all, of the stacked ones ``(copies, *shape)``.

    Optimizers that are not known to work entry by entry (``ENTRYWISE``, not their subclasses) are made so without a
    mark; the others are faster together."""

    def build(parameters: list[nn.Parameter]) -> Optimizer:
        return factory(parameters)

    build.per_copy = True  # type: ignore[attr-defined]
    return build


@dataclass(frozen=True)
class StackedOptimizer:
    """What trains the copies ``rows``: one optimizer of stacked tensors ``(copies, *shape)``, or one for every copy.

    Each has a dict of its ``parameters``, which share their memory with those of all copies.
    """

    rows: slice
    optimizers: tuple[Optimizer, ...]
    parameters: tuple[dict[str, nn.Parameter], ...]
    stacked: bool

    @classmethod
    def of(cls, params: Params, rows: slice, factory: Factory) -> Self:
        """The optimizers that ``factory`` makes of the ``rows`` of ``params``. Raises ``UserError`` for L-BFGS."""
        if not getattr(factory, "per_copy", False):
            try:
                together = cls._made(params, rows, factory, [rows])
            except (TypeError, ValueError):  # some refuse tensors of more than two dimensions
                together = None
            if together is not None and type(together.optimizer) in ENTRYWISE:
                return together
        return cls._made(params, rows, factory, range(rows.start, rows.stop))

    @classmethod
    def _made(cls, params: Params, rows: slice, factory: Factory, places: Sequence[slice | int]) -> Self:
        parameters = tuple({name: nn.Parameter(p.detach()[at]) for name, p in params.items()} for at in places)
        optimizers = tuple(factory(list(own.values())) for own in parameters)
        if isinstance(optimizers[0], LBFGS):
            raise UserError("L-BFGS takes all its parameters for those of one network: train its runs one by one")
        return cls(rows, optimizers, parameters, stacked=places == [rows])

    @property
    def optimizer(self) -> Optimizer:
        """The first one: all are of one class, with the same settings."""
        return self.optimizers[0]

    def join(self, params: Params) -> None:
        """Makes the parameters of the optimizers rows of ``params`` again, which copies of both are not."""
        for number, (_, parameters) in enumerate(self._pairs()):
            for name, p in parameters.items():
                p.data = params[name].detach()[self._at(number)]

    def fault(self, params: Params) -> str:
        """Which of the ``params`` of all copies is not what these optimizers step, in one line; empty if all are."""
        for name, p in self.parameters[0].items():
            own = params[name].detach()[self._at(0)]
            if (own.data_ptr(), Place.of(own)) != (p.data_ptr(), Place.of(p)):
                return f"params['{name}'] was replaced, and what was there would be trained: write into it in place"
        return ""

    def step(self, gradients: Mapping[str, Tensor | None]) -> None:
        """One step, with the gradients of all copies; None for parameters that the loss does not depend on."""
        for number, (optimizer, parameters) in enumerate(self._pairs()):
            for name, parameter in parameters.items():
                gradient = gradients[name]
                # fused kernels take gradients to lie in memory as parameters do
                parameter.grad = None if gradient is None else gradient[self._at(number)].contiguous()
            optimizer.step()

    def reset(self, symmetry: Symmetry) -> None:
        """Makes the state of what the symmetry moves what it was before the first step."""
        for optimizer, parameters in self._pairs():
            reset_state(optimizer, {p: name for name, p in parameters.items()}, symmetry)

    @torch.no_grad()
    def transport(self, symmetry: Symmetry, elements: tuple[Tensor, ...]) -> None:
        """Moves the state along, by one element ``(copies, ...)`` per site. Raises ``UserError`` if it has no law."""
        for number, (optimizer, parameters) in enumerate(self._pairs()):
            own = elements if self.stacked else tuple(g[number] for g in elements)
            names: dict[Tensor, str] = {p: name for name, p in parameters.items()}
            for tensor, value in moved_state(optimizer, names, symmetry, own):
                tensor.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """The state of the optimizers: tensors by the number of the parameter and the name of the entry, the tensors of
        a list by ``name.0`` and so on, numbers as tensors by ``name#``, those of a group by ``group.0.name#``."""
        found: dict[str, Tensor] = {}
        for first, optimizer in self._numbered():
            content = optimizer.state_dict()
            for i, entry in content["state"].items():
                for key, value in entry.items():
                    found |= _flat(f"{first + i}.{key}", value)
            for group in content["param_groups"]:
                for key, value in group.items():
                    found |= _flat(f"group.{first + min(group['params'])}.{key}", value) if key != "params" else {}
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what :meth:`state` gave."""
        for first, optimizer in self._numbered():
            content = optimizer.state_dict()
            numbers = [i for group in content["param_groups"] for i in group["params"]]
            entries = {i: _entries(f"{first + i}.", tensors) for i in numbers}
            groups = [
                {**group, **_entries(f"group.{first + min(group['params'])}.", tensors)}
                for group in content["param_groups"]
            ]
            state = {i: entry for i, entry in entries.items() if entry}
            optimizer.load_state_dict({**content, "state": state, "param_groups": groups})

    def _at(self, number: int) -> slice | int:
        """Which rows of stacked tensors the optimizer of that number has."""
        return self.rows if self.stacked else self.rows.start + number

    def _pairs(self) -> list[tuple[Optimizer, dict[str, nn.Parameter]]]:
        return list(zip(self.optimizers, self.parameters, strict=True))

    def _numbered(self) -> Iterator[tuple[int, Optimizer]]:
        """Every optimizer, and the number of its first parameter among those of all."""
        first = 0
        for optimizer in self.optimizers:
            yield first, optimizer
            first += sum(len(group["params"]) for group in optimizer.param_groups)


def require_whole(model: nn.Module, settings: Sequence[StackedOptimizer], params: Params, buffers: Params) -> None:
    """Raises ``UserError`` for parameters of ``model`` that would not be trained, and for sparse gradients."""
    for name, module in model.named_modules():
        if getattr(module, "sparse", False):
            raise UserError(f"'{name}' has sparse gradients, which cannot be stacked: make it with sparse=False")
    fault = new_parameter_fault(model, {*params, *buffers})
    if fault := next(filter(None, (setting.fault(params) for setting in settings)), fault):
        raise UserError(fault)


def gradients_of(losses: Tensor, params: Params) -> dict[str, Tensor | None]:
    """Those of every copy's own loss, None for parameters that the losses ``(copies,)`` do not depend on. Raises
    ``UserError`` for sparse ones."""
    try:
        found = torch.autograd.grad(losses.sum(), list(params.values()), allow_unused=True)
    except RuntimeError as error:
        if "sparse" in str(error):
            raise UserError("a gradient is sparse, which cannot be stacked: use sparse=False") from error
        raise
    return dict(zip(params, found, strict=True))


def _flat(name: str, value: Any) -> dict[str, Tensor]:
    """A tensor, a list of them (or of empty lists), or a number by names; nothing else is kept."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, list):
        parts = (torch.empty(0) if isinstance(v, list) else v for v in value)
        return {f"{name}.{i}": v for i, v in enumerate(parts) if isinstance(v, Tensor)}
    if isinstance(value, float):
        return {f"{name}#": torch.tensor(value, dtype=torch.float64)}
    return {f"{name}#": torch.tensor(value)} if isinstance(value, int) else {}


def _entries(lead: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The inverse of :func:`_flat` for the names that begin with ``lead``."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if not name.startswith(lead):
            continue
        key, _, number = name.removeprefix(lead).partition(".")
        if number:
            found.setdefault(key, []).append(tensor.clone())
        elif key.endswith("#"):
            found[key[:-1]] = tensor.item()
        else:
            found[key] = tensor.clone()
    return found
