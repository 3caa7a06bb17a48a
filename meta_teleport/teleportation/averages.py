"""Averages of many functions of the parameters, in the memory of one."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.params import Params, detach, per_task, value_and_grad


def average(terms: Iterable[Callable[[Params], Tensor]], params: Params) -> Tensor:
    """The mean of ``terms``, each of shape ``(tasks,)``; differentiable once with respect to ``params``.

    Each term's gradient is taken as soon as the term is known, if one can be wanted, so that no more than one graph
    is in memory. Task i of a term must depend on task i of the parameters only.

    Raises ``UserError`` where its gradient is to be differentiated again.
    """
    like = next(iter(params.values()))
    wanted = torch.is_grad_enabled() and any(p.requires_grad for p in params.values())
    point = detach(params)
    count, total = 0, like.new_zeros(like.shape[0])
    gradients = [torch.zeros_like(p) for p in point.values()] if wanted else []
    for term in terms:
        value, new = value_and_grad(term, point) if wanted else (term(point), {})
        gradients = [g + n for g, n in zip(gradients, new.values(), strict=True)]
        total, count = total + value.detach(), count + 1
    return _WithGradient.apply(total / count, [g / count for g in gradients], *params.values())


class _WithGradient(torch.autograd.Function):
    """A value ``(tasks,)`` whose gradient with respect to the tensors that follow is known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UserError(
                "an average over random directions can be differentiated once: leave create_graph out, or sum its "
                "terms in an objective of your own"
            )
        return (None, None, *(per_task(weight, g) * g for g in ctx.saved_tensors))
