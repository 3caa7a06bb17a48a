"""Fully connected networks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from meta_teleport.activations import activation
from meta_teleport.errors import UserError

DEEPEST = 1000
"""How many widths an MLP may have: far more than can be trained."""


class MLP(nn.Module):
    """``x -> W_L s(... s(W_1 x + b_1) ...) + b_L`` with widths ``(d_0, d_1, ..., d_L)``.

    Inputs have shape ``(n, d_0)``, outputs ``(n, d_L)``; ``activation`` is a name of the activation table. The
    parameters are called ``layers.0.weight``, ``layers.0.bias``, ...

    The forward pass broadcasts: with parameters ``(tasks, *shape)`` it takes inputs ``(tasks, n, d_0)``, or, where all
    tasks see the same, ``(n, d_0)``.
    """

    broadcasts = True

    def __init__(self, widths: Sequence[int], activation_name: str = "leaky_relu", bias: bool = False) -> None:
        super().__init__()
        if len(widths) < 3 or min(widths) < 1:
            raise UserError(f"widths {list(widths)} do not make an MLP: give at least three positive numbers")
        if len(widths) > DEEPEST:
            raise UserError(f"an MLP of {len(widths) - 1} layers is too deep to be trained: give fewer than {DEEPEST}")
        self.activation = activation(activation_name)
        self.widths = tuple(widths)
        self.layers = nn.ModuleList(nn.Linear(d, k, bias=bias) for d, k in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self.layers)):
            linear = cast(nn.Linear, self.layers[i])
            x = self.activation(x) if i else x
            x = _product(x, linear.weight)
            if linear.bias is not None:
                x = x + linear.bias.unsqueeze(-2)
        return x


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x W^T``; shared inputs ``(n, d)`` meet the weights ``(tasks, k, d)`` of all tasks in one matrix product, which
    is more than twice as fast as a batch of products."""
    if x.ndim == 2 and weight.ndim == 3:
        return (weight.flatten(0, 1) @ x.mT).unflatten(0, weight.shape[:2]).mT
    return x @ weight.mT
