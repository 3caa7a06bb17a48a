"""A linear map whose weight gradient is summed over all its uses in place.

A recurrent rule uses the same weights at every step of a window. Back-propagation forms one product
``delta_t^T x_t`` per step, each in memory of its own, and adds them up; with few tasks that is bound by memory, not by
arithmetic. Here the backward of each use passes on ``delta_t W`` and adds its product to one accumulator within the
matrix product itself. Same numbers to rounding (a test), twice as fast at 128 tasks and more below.

The accumulator of a weight tensor lives from its first use to the end of the backward pass that follows, so every
backward pass wants weights of its own: fresh leaves, as the estimators make them. First derivatives only.
"""

from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

ROWS = 32


class _Sum:
    """The gradient of one weight and its bias, summed in place over uses; few rows wait until they are worth it."""

    def __init__(self, owner: Tensor) -> None:
        self.owner = ref(owner)
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, delta: Tensor, x: Tensor) -> None:
        self.waiting.append((delta, x))
        if len(self.waiting) * len(x) >= ROWS:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        delta, x = (rows[0] if len(rows) == 1 else torch.cat(rows) for rows in zip(*self.waiting, strict=True))
        self.waiting.clear()
        if self.weight is None or self.bias is None:
            self.weight, self.bias = delta.t() @ x, delta.sum(0)
        else:
            self.weight.addmm_(delta.t(), x)
            self.bias.add_(delta.sum(0))

    def take(self) -> tuple[Tensor | None, Tensor | None]:
        """The finished sum. The owner lets go of it: they would keep each other alive."""
        self.flush()
        total = self.weight, self.bias
        self.weight = self.bias = None
        owner = self.owner()
        if owner is not None:
            vars(owner).pop("gathered", None)
        return total


class _Gather(Function):
    """A scalar that stands for one weight in the graph; its backward runs after those of all uses."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, total: _Sum) -> Tensor:
        ctx.total = total
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return *ctx.total.take(), None


class _Use(Function):
    """One use of a gathered weight: ``x W^T + b``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, token: Tensor, total: _Sum) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.total = total
        return F.linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, None, None, Tensor, None]:
        x, weight = ctx.saved_tensors
        ctx.total.add(delta, x)
        return delta @ weight if ctx.needs_input_grad[0] else None, None, None, delta.new_zeros(()), None


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x W^T + b`` for x ``(tasks, inputs)``, as ``torch.nn.functional.linear``, with gathered weight gradients."""
    if not (torch.is_grad_enabled() and weight.requires_grad and bias.requires_grad):
        return F.linear(x, weight, bias)
    gathered = getattr(weight, "gathered", None)
    if gathered is None:
        total = _Sum(weight)
        gathered = weight.gathered = (_Gather.apply(weight, bias, total), total)  # type: ignore[attr-defined]
    token, total = gathered
    return _Use.apply(x, weight.detach(), bias.detach(), token, total)
