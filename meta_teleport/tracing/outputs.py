"""What a model returns, what it leaves on its modules, and what is at hand inside."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from meta_teleport.errors import UserError


class Outputs(nn.Module):
    """A model whose outputs are the list of the tensors in what the model returns, and of those that it leaves on its
    modules, where a loss may read them. If ``calls`` are given, the tensors follow that its modules are called with and
    that they return."""

    def __init__(self, model: nn.Module, calls: "Calls | None" = None) -> None:
        super().__init__()
        self.model, self.calls = model, calls

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        before = {id(tensor) for tensor in _kept(self.model)}
        with self.calls or nullcontext():
            outputs = list(tensors_of(self.model(*args, **kwargs)))
        if not outputs:
            raise UserError("the model returns no tensors: let its forward return a tensor, or a tuple or dict of them")
        before |= {id(tensor) for tensor in (*self.model.parameters(), *self.model.buffers())}
        outputs += [tensor for tensor in _kept(self.model) if id(tensor) not in before]
        return outputs + (self.calls.tensors if self.calls else [])


class Calls:
    """Inside, what is at hand in the code of which module: what it is called with, and what those it calls return."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}

    def __enter__(self) -> None:
        self.tensors: list[Tensor] = []
        self.scopes: list[str] = []
        self.running: list[str] = []
        self.hooks = [module.register_forward_pre_hook(self._enter, with_kwargs=True) for module in self.names]
        self.hooks += [module.register_forward_hook(self._leave) for module in self.names]

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.running.append(self.names[module])
        self._note(self.names[module], (args, kwargs))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()
        for name in self.running[-1:]:
            self._note(name, output)

    def _note(self, name: str, values: Any) -> None:
        for tensor in tensors_of(values):
            self.scopes.append(name)
            self.tensors.append(tensor)


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The tensors in an output, in order. What is neither a container nor a tensor (caches) is no output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_of(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors_of(value)
    elif is_dataclass(output):
        for each in fields(output):
            yield from tensors_of(getattr(output, each.name))


def _kept(model: nn.Module) -> Iterator[Tensor]:
    """The tensors that the modules hold beside their parameters, and beside the weights that hooks of torch make of
    these before every call (old weight norms, pruning)."""
    for module in model.modules():
        for name, value in vars(module).items():
            made = {f"{name}_orig", f"{name}_g"} & module._parameters.keys()
            if name != "_parameters" and not made and isinstance(value, (Tensor, Mapping, list, tuple)):
                yield from tensors_of(value)
