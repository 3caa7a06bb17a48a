"""The loss that a learned optimizer is given, and whose gradients are in ``.grad``."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from meta_teleport.errors import UserError

Closure = Callable[[], Any]


class GivenLoss:
    """A loss comes as a tensor, from a closure, or was reported. For a tensor, gradients that have come since the last
    step are its own, by ``backward``, clipping or accumulation; where none have, ``backward`` is called.

    New gradients are told from old ones by the tensors that hold them, and by how often these were written to:
    ``backward`` makes new tensors or adds to old ones, ``zero_grad`` takes them away or writes zeros.
    """

    def __init__(self) -> None:
        self._reported: Tensor | float | None = None
        self._used: dict[Tensor, tuple[weakref.ref[Tensor], int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_reported": self._reported, "_used": {}}  # a copy has gradients of its own

    def report(self, loss: Tensor | float) -> None:
        """The loss of the gradients that are in ``.grad`` now."""
        self._reported = loss.detach() if isinstance(loss, Tensor) else loss

    def evaluate(self, given: Tensor | Closure | None, parameters: Iterable[Tensor], zero_grad: Closure) -> Any:
        """The loss; its gradients are in ``.grad`` afterwards. Raises ``UserError`` where there is none."""
        reported, self._reported = self._reported, None
        if given is None:
            if reported is None:
                raise UserError(
                    "a learned rule reads the loss: call step(loss), step(closure), or report(loss=...) before step()"
                )
            return reported
        if callable(given):
            with torch.enable_grad():
                return given()
        if not isinstance(given, Tensor) or given.numel() != 1 or not given.requires_grad:
            raise UserError("step(loss) needs one number with a graph: compute the loss from the model, and reduce it")
        if not self._have_come(parameters):
            zero_grad()
            given.backward()
        return given.detach()

    def close(self, parameters: Iterable[Tensor]) -> None:
        """A step has used the gradients that the parameters have."""
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
