"""``einsum``, as products of matrices, two operands at a time."""

from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph

from meta_teleport.operations.arithmetic import multiply
from meta_teleport.operations.products import matmul
from meta_teleport.operations.values import Step, Value, handles, unknown


class Operand(NamedTuple):
    """A tensor, and the letters of its axes."""

    letters: str
    value: Value


@handles("einsum")
def einsum(step: Step, equation: str, operands: list[Value], **kwargs: Any) -> Any:
    """Operand by operand, beginning at what is no parameter, always with one that shares a letter."""
    inputs, _, out = equation.replace(" ", "").partition("->")
    left = list(map(Operand, inputs.split(","), operands))
    if len(left) < 2 or not (inputs + out).replace(",", "").isalpha() or any(len({*a}) < len(a) for a, _ in left):
        return unknown(step, (operands,), kwargs)
    made = left.pop(next((i for i, operand in enumerate(left) if not operand.value.parameter), 0))
    while left:
        other = left.pop(next((i for i, operand in enumerate(left) if {*operand.letters} & {*made.letters}), 0))
        kept = {*out}.union(*(operand.letters for operand in left))
        letters = "".join(c for c in dict.fromkeys(made.letters + other.letters) if c in kept) if left else out
        value = _product(_stage(step) if left else step, made, other, letters)
        if value is None or sorted({*letters}) != sorted(letters):
            return unknown(step, (operands,), kwargs)
        made = Operand(letters, value)
    return made.value


def _product(step: Step, first: Operand, second: Operand, out: str) -> Value | None:
    """``(batch, left, summed) x (batch, summed, right)``, each of which may be several letters; entry by entry where
    nothing is summed. None where a letter of one operand alone is summed."""
    (a, x), (b, y) = first, second
    batch, summed = [c for c in a if c in b and c in out], [c for c in a if c in b and c not in out]
    left, right = [c for c in a if c not in b], [c for c in b if c not in a]
    if sorted(out) != sorted(batch + left + right):
        return None
    sizes = {c: max(v.shape[o.index(c)] for o, v in (first, second) if c in o) for c in a + b}  # one broadcasts
    shape = torch.Size(sizes[c] for c in out)
    if not summed:
        x, y = (_arranged(v, o, [[c] if c in o else [] for c in out]) for o, v in (first, second))
        product: Value = multiply(replace(step, operation="mul", shape=shape), x, y)
        return product
    x = _arranged(x, a, [*([c] for c in batch), left, summed])
    y = _arranged(y, b, [*([c] for c in batch), summed, right])
    made = matmul(replace(step, shape=torch.Size((*x.shape[:-1], y.shape[-1]))), x, y)
    if made.labels is None:
        return Value(shape)
    order = batch + left + right
    labels = made.labels.reshape([sizes[c] for c in order])
    return Value(shape, labels.permute([order.index(c) for c in out]))


def _stage(step: Step) -> Step:
    """The step with a node of its own: units that different products read are not mixed with one another."""
    node = Graph().placeholder(step.node.name)
    node.meta = step.node.meta
    return replace(step, node=node)


def _arranged(value: Value, letters: str, groups: list[list[str]]) -> Value:
    """A value with its axes in another order, those of each group as one."""
    shape = torch.Size(prod(value.shape[letters.index(c)] for c in group) for group in groups)
    order = [letters.index(c) for group in groups for c in group]

    def arrange(tensor: Tensor) -> Tensor:
        return tensor.permute(order).reshape(shape)

    labels = None if value.labels is None else arrange(value.labels)
    return Value(shape, labels, value.parameter, tuple(map(arrange, value.coordinates)))
