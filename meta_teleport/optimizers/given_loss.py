"""The loss that an optimizer is given, whose gradients are in ``.grad``, and what it is at other parameters."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.teleportation.ranks import Ranks, mean

Closure = Callable[[], Any]

SCALED = 1024
"""A loss that counts this many times was multiplied by a gradient scaler, whose factor is nobody's to know."""


class ReturnedLoss:
    """The loss that a ``model`` computes itself and returns as ``loss`` of its output, as those of transformers do.

    Where several come between two steps, as gradients accumulate, each counts as ``backward`` has counted it: the sum
    of ``l_i dL/dl_i`` is the loss L whose gradients are in ``.grad``, whether a trainer takes their sum or their mean.
    Under a gradient scaler it is their mean.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen: list[tuple[Tensor, Tensor]] = []
        handle = model.register_forward_hook(_Watch(self))
        self.close = weakref.finalize(self, handle.remove)

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self._model}  # a copy has gradients of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def take(self) -> Tensor | None:
        """The loss of the gradients that have come since this was asked last; None if the model has returned none."""
        seen, self._seen = self._seen, []
        if len(seen) < 2:
            return seen[0][0] if seen else None
        losses, weights = (torch.stack(column) for column in zip(*seen, strict=True))
        return torch.where(weights.max() < SCALED, losses @ weights, losses.mean())

    def _watch(self, module: nn.Module, output: Any) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
            return
        if all(isinstance(p, nn.Parameter) for p in module.parameters()):  # and is not only tried elsewhere
            value = loss.detach()
            loss.register_hook(lambda weight: self._seen.append((value, weight.detach())))


class GivenLoss:
    """A loss comes as a tensor, from a closure, was reported, or was returned by the model. For a tensor, gradients
    that have come since the last step are its own, by ``backward``, clipping or accumulation; where none have,
    ``backward`` is called. What is reported while a closure runs is what the closure stands for.

    New gradients are told from old ones by the tensors that hold them, and by how often these were written to:
    ``backward`` makes new tensors or adds to old ones, ``zero_grad`` takes them away or writes zeros.
    """

    def __init__(self, model: nn.Module) -> None:
        self.returned = ReturnedLoss(model)
        self._reported: Tensor | float | None = None
        self._used: dict[Tensor, tuple[weakref.ref[Tensor], int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_used": {}}  # a copy has gradients of its own

    def report(self, loss: Tensor | float) -> None:
        """The loss of the gradients that are in ``.grad`` now."""
        self._reported = loss.detach() if isinstance(loss, Tensor) else loss

    def evaluate(
        self, given: Tensor | Closure | None, parameters: Iterable[Tensor], zero_grad: Closure
    ) -> tuple[Any, Closure | None]:
        """The loss, and the closure if it can be asked for the loss again; the gradients are in ``.grad`` afterwards.

        Lightning's closure does nothing where backward is called by hand. Raises ``UserError`` where there is no loss.
        """
        if given is not None and not callable(given):
            self._reported = None
            if not isinstance(given, Tensor) or given.numel() != 1 or not given.requires_grad:
                raise UserError(
                    "step(loss) needs one number with a graph: compute the loss from the model, and reduce it"
                )
            if not self._have_come(parameters):
                zero_grad()
                given.backward()
            return given.detach(), None
        loss = None if given is None else self.of(given)
        reported, self._reported = self._reported, None
        known = (loss, given), (reported, None), (self.returned.take(), None)
        for found, closure in known:
            if found is not None:
                return found, closure
        raise UserError(
            "a learned rule reads the loss: call step(loss), step(closure), or report(loss=...) before step(), or let "
            "the model return it as the loss of its output"
        )

    def of(self, closure: Closure) -> Any:
        """The loss of a closure; None if it has none."""
        before, self._reported = self._reported, None
        with torch.enable_grad():
            loss = closure()
        inside, self._reported = self._reported, before
        return loss if inside is None else inside

    def close(self, parameters: Iterable[Tensor]) -> None:
        """A step has used the gradients that the parameters have."""
        self.returned.take()
        held = ((p, p.grad) for p in parameters)
        self._used = {p: (weakref.ref(g), g._version) for p, g in held if g is not None}

    def _have_come(self, parameters: Iterable[Tensor]) -> bool:
        written = []
        for p in parameters:
            if p.grad is None:
                continue
            reference, version = self._used.get(p, (None, -1))
            if reference is None or reference() is not p.grad:
                return True
            if p.grad._version != version:
                written.append(p.grad)
        return any(bool(g.count_nonzero()) for g in written)


class ClosureLoss:
    """``closure()`` evaluated at other values of the named ``parameters`` of the model.

    Afterwards parameters, gradients, buffers and the global random generators are bitwise what they were; every
    evaluation sees the same random numbers (dropout). It is the mean over all ``ranks``.
    """

    def __init__(
        self, model: nn.Module, closure: Callable[[], Any], parameters: dict[str, nn.Parameter], ranks: Ranks
    ) -> None:
        self.model, self.closure, self.parameters, self.ranks = model, closure, parameters, ranks

    @torch.no_grad()
    def __call__(self, params: Params) -> Tensor:
        """The loss ``(1,)`` at ``params``, each ``(1, *shape)``."""
        everything = list(self.model.parameters())
        saved = [(p, p.clone()) for p in [*everything, *self.model.buffers()]]
        gradients = [p.grad for p in everything]
        devices = {p.device.index for p in everything if p.device.type == "cuda"}
        try:
            for p in everything:
                p.grad = None
            for name, p in self.parameters.items():
                p.copy_(params[name][0])
            with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
                found = self.closure()
            value = torch.as_tensor(found).detach().to(next(iter(params.values()))).reshape(1)
            return mean(value, self.ranks.group)
        finally:
            for tensor, value in saved:
                tensor.copy_(value)
            for p, gradient in zip(everything, gradients, strict=True):
                p.grad = gradient


class _Watch:
    """A hook on the outputs of a model as long as its ``owner`` lives; compiled code leaves it out, and copies and
    pickles of it do nothing."""

    def __init__(self, owner: ReturnedLoss | None = None) -> None:
        self.owner = None if owner is None else weakref.ref(owner)

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        owner = None if self.owner is None else self.owner()
        if owner is not None:
            owner._watch(module, output)

    def __reduce__(self) -> Any:
        return _Watch, ()
