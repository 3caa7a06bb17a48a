"""A linear map whose weight gradient is summed over all its uses in place.

A recurrent rule uses the same weights at every step of a window. Back-propagation forms one product
``delta_t^T x_t`` per step, each in memory of its own, and adds them up; with few tasks that is bound by memory, not by
arithmetic. Here the backward of each use passes on ``delta_t W`` and adds its product to one accumulator within the
matrix product itself. Same numbers to rounding (a test).

The accumulator of a weight tensor lives as long as the graph of its uses, up to the end of the backward pass, so every
backward pass wants weights of its own: fresh leaves, as the estimators make them. First derivatives only.
"""

from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.autograd import Function

ROWS = 512


class _Sum:
    """The gradient of one weight, summed in place over its uses; few rows wait until they are worth a product."""

    def __init__(self, owner: Tensor) -> None:
        self.owner = ref(owner)
        self.total: Tensor | None = None
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
        if self.total is None:
            self.total = delta.t() @ x
        else:
            self.total.addmm_(delta.t(), x)

    def take(self) -> Tensor | None:
        """The finished sum, which its owner knows no longer."""
        self.flush()
        total, self.total = self.total, None
        owner = self.owner()
        if owner is not None:
            vars(owner).pop("gathered", None)
        return total


class _Gather(Function):
    """A scalar that stands for one weight in the graph; its backward runs after those of all uses."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, total: _Sum) -> Tensor:
        ctx.total = total
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return ctx.total.take(), None


class _Use(Function):
    """One use of a gathered weight: ``start + x W^T``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, start: Tensor, token: Tensor, total: _Sum) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.total, ctx.token, ctx.summed = total, token, start.ndim == 1
        if ctx.summed:
            return torch.addmm(start, x, weight.t())
        ctx.mark_dirty(start)
        return start.addmm_(x, weight.t())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        ctx.total.add(delta, x)
        to_x = delta @ weight if ctx.needs_input_grad[0] else None
        return to_x, None, delta.sum(0) if ctx.summed else delta, delta.new_zeros(()), None


def linear(x: Tensor, weight: Tensor, start: Tensor) -> Tensor:
    """``start + x W^T`` for x ``(tasks, inputs)``, with gathered weight gradients.

    ``start`` is a bias ``(outputs,)``, or rows ``(tasks, outputs)``, which are overwritten with the result.
    """
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return torch.addmm(start, x, weight.t()) if start.ndim == 1 else start.addmm_(x, weight.t())
    token, total = _gathered(weight)
    return _Use.apply(x, weight.detach(), start, token, total)


def _gathered(weight: Tensor) -> tuple[Tensor, _Sum]:
    """The token and the sum of a weight. Only the graph of its uses keeps them: the token's leads back to the weight,
    so that one held by the weight itself would keep it alive for good."""
    token, total = (known() for known in getattr(weight, "gathered", (lambda: None,) * 2))
    if token is None or total is None:
        total = _Sum(weight)
        token = _Gather.apply(weight, total)
        weight.gathered = (ref(token), ref(total))  # type: ignore[attr-defined]
    return token, total
