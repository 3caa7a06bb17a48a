"""``einsum`` of two tensors, as a product of matrices."""

from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from meta_teleport.detection.products import matmul
from meta_teleport.detection.values import Step, Value, handles, unknown


@handles("einsum")
def einsum(step: Step, equation: str, operands: list[Value], **kwargs: Any) -> Any:
    """``(batch, left, summed) x (batch, summed, right)``, each of which may be several letters."""
    inputs, _, out = equation.replace(" ", "").partition("->")
    a, _, b = inputs.partition(",")
    batch, summed = [c for c in a if c in b and c in out], [c for c in a if c in b and c not in out]
    left, right = [c for c in a if c not in b], [c for c in b if c not in a]
    if sorted(out) != sorted(batch + left + right) or not summed or len({*a}) + len({*b}) < len(a + b):
        return unknown(step, (operands,), kwargs)
    x, y = operands
    sizes = dict(zip(a + b, (*x.shape, *y.shape), strict=True))
    x = _arranged(x, a, [*([c] for c in batch), left, summed])
    y = _arranged(y, b, [*([c] for c in batch), summed, right])
    made = matmul(replace(step, shape=torch.Size((*x.shape[:-1], y.shape[-1]))), x, y)
    if made.labels is None:
        return step.fixed()
    order = batch + left + right
    labels = made.labels.reshape([sizes[c] for c in order])
    return step.labelled(labels.permute([order.index(c) for c in out]))


def _arranged(value: Value, letters: str, groups: list[list[str]]) -> Value:
    """A value with its axes in another order, those of each group as one."""
    shape = torch.Size(prod(value.shape[letters.index(c)] for c in group) for group in groups)
    order = [letters.index(c) for group in groups for c in group]

    def arrange(tensor: Tensor) -> Tensor:
        return tensor.permute(order).reshape(shape)

    labels = None if value.labels is None else arrange(value.labels)
    return Value(shape, labels, value.parameter, tuple(map(arrange, value.coordinates)))
