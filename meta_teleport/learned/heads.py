"""Output layers of the LSTM rules: from a hidden state ``(tasks, hidden_size)`` to updates, elements, step lengths."""

from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from meta_teleport.learned.accumulated_linear import linear
from meta_teleport.params import Params, axpy, dot, unflatten
from meta_teleport.rules.rule import Observation, Shapes

ElementSize = Literal["fixed", "learned"]

LR_MIN, LR_MAX = 1e-7, 5e-3
UPDATE_LIMIT = 1e7


class ElementHead(nn.Module):
    """Algebra coordinates from a hidden state: a linear map, then the size.

    ``fixed``: rescaled to Frobenius norm exactly ``size`` (published: 0.01). ``learned``: ``size T / sqrt(size^2 +
    |T|^2)``, any norm below ``size``, zero included.
    """

    def __init__(self, hidden_size: int, algebra: tuple[int, ...], element_size: ElementSize, size: float) -> None:
        super().__init__()
        self.algebra, self.element_size, self.size = algebra, element_size, size
        self.linear = nn.Linear(hidden_size, prod(algebra))
        if element_size == "learned":
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        t = linear(hidden, self.linear.weight, self.linear.bias)
        square = t.square().sum(1, keepdim=True)
        scale = square.sqrt() if self.element_size == "fixed" else (square + self.size**2).sqrt()
        return (self.size * t / scale).reshape(t.shape[0], *self.algebra)


class UpdateHead(nn.Module):
    """The update from a hidden state: a dense map, and a learned multiple of Polyak's step where asked for."""

    def __init__(self, hidden_size: int, shapes: Shapes, gradient_term: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, sum(prod(shape) for shape in shapes.params.values()))
        self.polyak = PolyakHead(hidden_size) if gradient_term else None
        if gradient_term:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, observation: Observation) -> Params:
        dense = linear(hidden, self.linear.weight, self.linear.bias).clamp(-UPDATE_LIMIT, UPDATE_LIMIT)
        update = unflatten(dense, observation.params)
        if self.polyak is None:
            return update
        return axpy(-self.polyak(hidden, observation), observation.gradients, update)


def polyak_length(loss: Tensor, square: Tensor) -> Tensor:
    """``L / |grad|^2``, and 0 where the gradient is."""
    nonzero = square > 0
    return torch.where(nonzero, loss / torch.where(nonzero, square + torch.finfo(square.dtype).tiny, 1.0), 0.0)


class PolyakHead(nn.Module):
    """A step length ``exp(a) L / |grad|^2`` per task, a linear in the hidden state and 0 at the start.

    With a = 0 and minimum 0 this is half of Polyak's step for a convex loss, whatever the scale of the problem.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, observation: Observation) -> Tensor:
        square = dot(observation.gradients, observation.gradients)
        return self.linear(hidden).squeeze(1).exp() * polyak_length(observation.loss, square)


class ClampedHead(nn.Module):
    """The published learning rate: a linear output clamped to [1e-7, 5e-3].

    It starts in the middle: where the clamp holds there is no gradient, and the published head starts at one end or
    the other, as the seed decides.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, (LR_MIN + LR_MAX) / 2)

    def forward(self, hidden: Tensor, observation: Observation) -> Tensor:
        return self.linear(hidden).squeeze(1).clamp(LR_MIN, LR_MAX)
