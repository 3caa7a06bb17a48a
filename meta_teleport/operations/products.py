"""What products mean for units: layers with weights, embeddings, and the two products of attention."""

from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from meta_teleport.operations.arithmetic import add, multiply
from meta_teleport.operations.attention import contract, look_up, weigh
from meta_teleport.operations.labels import FIXED, ZERO, squeeze_repeats, varies
from meta_teleport.operations.values import Step, Value, handles, labels_or_fixed, unknown

MATRICES = ("matmul", "bmm", "mm")


@handles("linear")
def linear(step: Step, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """``x W^T + b`` with W ``(m, d)``."""
    if not weight.parameter:
        return two_varying(step, x, weight, bias)
    if len(weight.shape) == 1:
        made = _vector(step, x, weight)
        return made if bias is None else add(step, made, bias)
    return layer(step, x, weight, axis=-1, reads=1, bias=bias)


@handles("addmm")
def addmm(step: Step, start: Value, x: Value, y: Value, **kwargs: Any) -> Value:
    """``b + x W``."""
    if kwargs or not (y.parameter and start.parameter):
        result: Value = unknown(step, (start, x, y), kwargs)
        return result
    return layer(step, x, y, axis=-1, reads=0, bias=start)


@handles("baddbmm")
def baddbmm(step: Step, start: Value, x: Value, y: Value, **kwargs: Any) -> Value:
    """``beta b + alpha x y``: the scores of attention with something added that does not move."""
    if not (x.moves and y.moves):
        result: Value = unknown(step, (start, x, y), kwargs)
        return result
    step.forbid(start)
    step.refuse(start)
    return contract(step, x, y)


@handles("matmul mm bmm mv")
def matmul(step: Step, x: Value, y: Value) -> Value:
    """A layer if one factor is a parameter, attention if both move."""
    if y.pair is not None:
        return look_up(step, x, *y.pair)
    if x.parameter and y.parameter and len(x.shape) == len(y.shape) == 2:
        return _factors(step, x, y)
    if y.parameter and len(y.shape) == 2:
        return layer(step, x, y, axis=-1, reads=0)
    if x.parameter and len(x.shape) == 2 and len(y.shape) >= 2:
        return layer(step, y, x, axis=-2, reads=1)
    if y.parameter and len(y.shape) == 1 and not x.parameter:
        return _vector(step, x, y)
    if x.shape[:-2] == y.shape[:-2] and len(x.shape) > 2 and y.parameter and not x.parameter:
        return _each_layer(step, x, y)
    if x.shape[:-2] == y.shape[:-2] and len(x.shape) > 2 and x.parameter and not y.parameter:
        turned = _each_layer(replace(step, shape=_turned(step.shape)), *(_transposed(value) for value in (y, x)))
        return step.labelled(labels_or_fixed(turned).mT)
    if x.parameter or y.parameter or min(len(x.shape), len(y.shape)) < 2:
        return two_varying(step, x, y)
    if x.moves and y.moves:
        a, b = labels_or_fixed(x), labels_or_fixed(y).mT
        if all(varies(labels)[-2:] == [True, False] for labels in (a, b)) and _is_looked_up(step.node):
            return Value(step.shape, pair=(a.select(-1, 0), b.select(-1, 0)))
        return contract(step, x, y)
    if y.moves:
        return weigh(step, y)
    if x.moves:
        return weigh(step, Value(_turned(x.shape), labels_or_fixed(x).mT), transposed=True)
    return step.fixed()


def two_varying(step: Step, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """A product whose factors both vary in a way that no layer and no pair of factors has: nothing of it moves."""
    for value in (x, weight, bias):
        if value is not None:
            step.forbid(value)
            step.refuse(value)
    return step.fixed()


def _factors(step: Step, u: Value, v: Value) -> Value:
    """``U V`` of two parameters, a weight of low rank: what lies between them are units, the product does not move."""
    units = step.units.fresh(v.shape[0], step.node)
    step.units.use(v.parameter, v.coordinates, units.unsqueeze(1), None, step.place)
    step.units.use(u.parameter, u.coordinates, None, units.unsqueeze(0), step.place)
    return step.fixed()


def layer(step: Step, x: Value, weight: Value, axis: int, reads: int, bias: Value | None = None) -> Value:
    """New units from the units along ``axis`` of x, by a weight whose axis ``reads``, of the first two, runs along
    them."""
    step.refuse(x)
    right = units_along(step, x, axis)
    made = step.units.fresh(weight.shape[1 - reads], step.node)

    def along(units: Tensor, at: int) -> Tensor:
        return units.reshape([-1 if i == at else 1 for i in range(len(weight.shape))])

    read = None if right is None else along(right, reads)
    step.units.use(weight.parameter, weight.coordinates, along(made, 1 - reads), read, step.place)
    return with_bias(step, step.labelled(made.reshape(-1, *[1] * (-axis - 1))), made, bias)


def _vector(step: Step, x: Value, weight: Value) -> Value:
    """One new unit from the units along the last axis of x, by a weight ``(d,)``."""
    row = Value(
        torch.Size((1, *weight.shape)),
        parameter=weight.parameter,
        coordinates=tuple(c.unsqueeze(0) for c in weight.coordinates),
    )
    made = layer(replace(step, shape=torch.Size((*step.shape, 1))), x, row, axis=-1, reads=1)
    return step.labelled(labels_or_fixed(made).squeeze(-1))


def _each_layer(step: Step, x: Value, weight: Value) -> Value:
    """``x_e W_e`` with W ``(*experts, d, m)``, for every e along the axes in front: units of its own."""
    step.refuse(x)
    right = None
    if x.moves:
        read = labels_or_fixed(x).amax(-2, keepdim=True)  # (*experts, 1, d)
        step.units.join(labels_or_fixed(x), read, step.place)
        for i, row in enumerate(read.flatten(0, -2).unique(dim=0).tolist()):
            step.units.touch(row, (step.node, "", i))
        right = read.mT
    shape = (*weight.shape[:-2], 1, weight.shape[-1])
    made = step.units.fresh(prod(shape), step.node).reshape(shape)
    step.units.use(weight.parameter, weight.coordinates, made, right, step.place)
    return step.labelled(made)


@handles("grouped_mm grouped_mm_fallback")
def route(step: Step, x: Value, weight: Value, ends: Value | None = None, *args: Any, **kwargs: Any) -> Value:
    """``x_s W_e(s)`` with W ``(experts, d, m)``: every row by the weight of the expert that it is sent to. A unit is
    the same column of all experts, which move alike."""
    if not weight.parameter or x.parameter or len(weight.shape) != 3 or args or kwargs.get("bias") is not None:
        result: Value = unknown(step, (x, weight, ends, args), kwargs)
        return result
    step.forbid(*([ends] if ends is not None else []))
    coordinates = tuple(c.permute(1, 2, 0) for c in weight.coordinates)
    columns = Value(torch.Size(coordinates[0].shape), parameter=weight.parameter, coordinates=coordinates)
    return layer(step, x, columns, axis=-1, reads=0)


def _turned(shape: torch.Size) -> torch.Size:
    return shape[:-2] + shape[-2:][::-1]


def _transposed(value: Value) -> Value:
    labels = None if value.labels is None else value.labels.mT
    return Value(_turned(value.shape), labels, value.parameter, tuple(c.mT for c in value.coordinates))


def with_bias(step: Step, result: Value, made: Tensor, bias: Value | None) -> Value:
    """A layer's result and its bias, whose entries make the units that the layer has ``made``."""
    if bias is None:
        return result
    if bias.parameter and bias.shape == made.shape:
        step.units.use(bias.parameter, bias.coordinates, made, None, step.place)
        return result
    return add(step, result, bias)


def units_along(step: Step, x: Value, axis: int) -> Tensor | None:
    """The unit that each row of a weight reads: one per place along ``axis``, joined over all other places."""
    if x.constant is not None:
        zero = (x.constant.movedim(axis, -1) == 0).reshape(-1, x.shape[axis]).all(0)
        return torch.where(zero, ZERO, FIXED) if bool(zero.any()) else None
    if x.labels is None or not x.labels.numel():
        return None
    labels = squeeze_repeats(x.labels.movedim(axis, -1))[0]
    labels = labels.expand(*labels.shape[:-1], x.shape[axis]).reshape(-1, x.shape[axis])
    units = labels.amax(0)
    if bool((labels != units).any()):
        step.units.join(labels, units, step.place)
    for i, row in enumerate(labels.unique(dim=0).tolist()):
        step.units.touch(row, (step.node, "", i))
    return units


@handles("mul")
def multiply_or_dot(step: Step, a: Any, b: Any, **kwargs: Any) -> Value:
    """A product entry by entry; where all that reads it is its sum over units, ``(u * v).sum(-1)``, one of rows."""
    axis = _summed(step) if _name(step.node) == "mul" else None  # not in place
    movers = [value for value in (a, b) if isinstance(value, Value) and value.moves]
    if axis is None or len(movers) < 2:
        return multiply(step, a, b, **kwargs)
    x, y = (labels.movedim(axis, -1) for labels in torch.broadcast_tensors(*map(labels_or_fixed, movers)))
    if not (varies(x)[-1] and varies(y)[-1]):
        return multiply(step, a, b, **kwargs)
    contract(step, Value(x.unsqueeze(-2).shape, x.unsqueeze(-2)), Value(y.unsqueeze(-1).shape, y.unsqueeze(-1)))
    return step.fixed()


def _summed(step: Step) -> int | None:
    """The axis over which everything that reads the result sums it; None if there is no such axis."""
    axes: set[int | None] = set()
    for user in step.node.users:
        given: Any = user.args[1] if _name(user) in ("sum", "mean") and len(user.args) > 1 else None
        axes.add(given[0] % len(step.shape) if isinstance(given, (list, tuple)) and len(given) == 1 else None)
    return axes.pop() if len(axes) == 1 else None


def _name(node: Node) -> str:
    return str(getattr(getattr(node.target, "_overloadpacket", None), "__name__", ""))


@handles("embedding")
def embed(step: Step, weight: Value, index: Value, *args: Any) -> Value:
    """Rows of a table: every column is a unit."""
    if not weight.parameter:
        return two_varying(step, weight, index)
    units = step.units.fresh(weight.shape[1], step.node)
    step.units.use(weight.parameter, weight.coordinates, units.unsqueeze(0), None, step.place)
    return step.labelled(units)


@handles("embedding_bag")
def embed_bags(step: Step, weight: Value, index: Value, *args: Any, **kwargs: Any) -> list[Value]:
    """Sums, means or largest entries (mode 2) of rows of a table, and what belongs to no unit."""
    bags, *others = step.node.meta["val"]
    step.forbid(*(other for other in args if isinstance(other, Value)))
    step.refuse(*(other for other in args if isinstance(other, Value)))
    made = embed(replace(step, shape=bags.shape), weight, index)
    if len(args) > 2 and args[2] == 2:
        step.forbid(made, kinds=["mix"], reason="pass")
    return [made, *(Value(other.shape) for other in others)]


@handles("scaled_dot_product_attention")
def attend(step: Step, q: Value, k: Value, v: Value, *args: Any, enable_gqa: bool = False, **kwargs: Any) -> Value:
    """``softmax(q k^T / sqrt(d)) v`` over the last two axes, head by head."""
    step.forbid(*(mask for mask in (*args, *kwargs.values()) if isinstance(mask, Value)))
    if any(value.parameter for value in (q, k, v)):
        return two_varying(step, q, k, v)
    if enable_gqa:
        k, v = (_repeat(value, q.shape[-3] // value.shape[-3]) for value in (k, v))
    contract(step, q, _transposed(k))
    return weigh(step, v) if v.moves else step.fixed()


def _repeat(value: Value, times: int) -> Value:
    shape = (*value.shape[:-3], value.shape[-3] * times, *value.shape[-2:])
    labels = None if value.labels is None else value.labels.repeat_interleave(times, -3)
    return Value(torch.Size(shape), labels)


def _is_looked_up(node: Node) -> bool:
    """Whether a product of matrices is read, and all that reads it multiplies it from the left."""
    readers = [user.args if _name(user) in MATRICES else () for user in node.users]
    return _name(node) in MATRICES and bool(readers) and all(r[1:] == (node,) and r[0] is not node for r in readers)
