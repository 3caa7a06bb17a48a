"""What sums and products mean for units, and parameters that meet units one by one.

A parameter that is added is a bias of the units it is added to. One that is multiplied is a layer with a
diagonal weight: it reads units and makes new ones.
"""

from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from meta_teleport.operations.labels import (
    FIXED,
    ZERO,
    distinct,
    has_nothing,
    nothing_where,
    squeeze_repeats,
    still_where_nothing,
    varies,
)
from meta_teleport.operations.units import KINDS
from meta_teleport.operations.values import (
    Step,
    Value,
    as_units,
    differs_between_units,
    handles,
    labels_or_fixed,
    unknown,
    zeros,
)

MOST = 1 << 20


@handles("glu")
def gated(step: Step, value: Value, axis: int = -1) -> Value:
    """``a * sigmoid(b)`` for the two halves of a tensor."""
    if value.labels is None:
        return step.fixed()
    a, b = value.labels.chunk(2, dim=axis)
    return gate(step, Value(step.shape, b), Value(step.shape, a))


@handles("add sub rsub")
def add(step: Step, a: Any, b: Any, alpha: float = 1) -> Value:
    """Sums join units at the same place. A parameter that is added is a bias of the units it is added to."""
    a, b = _value(a), _value(b)
    if b.parameter and not b.moves and a.moves:
        return bias(step, a, b)
    if a.parameter and b.moves:
        return bias(step, b, a)
    if not (a.moves or b.moves):
        if shifted := _shifted(step, a, b, alpha):
            return shifted
        step.refuse(a, b)
        return step.fixed()
    if a.moves and b.moves:
        return _sum(step, a, b)
    varying, other = (a, b) if a.moves else (b, a)
    if other.constant is not None and not bool(other.constant.any()):
        return step.labelled(labels_or_fixed(varying))
    uniform = other.shape.numel() == 1
    step.forbid(varying, kinds=["mix", "scale"] if uniform else KINDS, reason="are added to what does not move in")
    return step.labelled(still_where_nothing(labels_or_fixed(varying))) if uniform else step.fixed()


def _shifted(step: Step, a: Value, b: Value, alpha: float) -> Value | None:
    """``1 + gamma`` and its kin: a multiple of a parameter plus a number; None for any other sum."""
    value, number = (a, b) if a.parameter else (b, a)
    constant = number.constant
    if number.name or constant is None or constant.numel() != 1 or constant.is_complex() or value.shape != step.shape:
        return None
    if step.operation not in ("add", "sub", "rsub") or step.in_place or step.units.behind(value.parameter) or not alpha:
        return None
    divided = (step.operation == "rsub") != (value is b)  # alpha belongs to the second, in rsub to the first
    shift = float(constant) / alpha if divided else float(constant) * alpha
    shift = shift if step.operation == "add" else -shift
    return replace(value, parameter=step.units.shift(value.parameter, shift)) if isfinite(shift) else None


@handles("maximum minimum")
def larger(step: Step, a: Value, b: Value) -> Value:
    """Positively homogeneous in both together, and no place for a bias."""
    if a.parameter or b.parameter:
        result: Value = unknown(step, (a, b), {})
        return result
    step.forbid(a, b, kinds=["mix"], reason="pass")
    return add(step, a, b)


@handles("where")
def choose(step: Step, mask: Value, a: Any, b: Any) -> Value:
    """Entries of a in the places of a mask, of b elsewhere. A mask that moves is made of signs of units."""
    a, b = (as_units(step, _value(value)) for value in (a, b))
    if mask.moves and not (a.moves or b.moves) and a.shape.numel() == b.shape.numel() == 1:
        return step.labelled(labels_or_fixed(mask))
    return masked(step, mask, add(step, a, b))


def masked(step: Step, mask: Value, value: Value) -> Value:
    """Units with zeros in the places of a mask."""
    if not mask.moves:
        if value.moves and differs_between_units(value, mask):
            step.forbid(value, kinds=["mix", "permute"], reason="are masked one by one in", odd=True)
        return step.labelled(labels_or_fixed(value)) if value.moves else step.fixed()
    return gate(step, mask, value)


@handles("addcmul addcdiv")
def add_product(step: Step, start: Value, a: Value, b: Value, value: Any = 1) -> Value:
    """``start + value a b``."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    operation = {"addcmul": "mul", "addcdiv": "div"}[step.operation]
    return add(step, start, multiply(replace(step, operation=operation, shape=shape), a, b))


def _sum(step: Step, a: Value, b: Value) -> Value:
    pairs = distinct(labels_or_fixed(a), labels_or_fixed(b))
    if any(i != j for i, j in pairs) and {i for i, _ in pairs} == {j for _, j in pairs}:
        reason = "are rotated among one another (rotary embedding) by"
        step.forbid(a, b, kinds=["mix", "permute"], reason=reason, odd=True)
    x, y = torch.broadcast_tensors(labels_or_fixed(a), labels_or_fixed(b))
    step.units.join(x, y, step.place)
    return step.labelled(x if all(i >= 0 for i, _ in pairs) else torch.maximum(x, y))


def bias(step: Step, value: Value, parameter: Value) -> Value:
    """``h + b``: the entries of b make the units that they are added to."""
    labels, seen = labels_or_fixed(value), _seen_by(step, value, parameter)
    alone = seen == ZERO
    if bool(alone.any()):  # where there is nothing, the entry is a unit of its own
        seen = torch.where(alone, step.units.fresh(seen.numel(), step.node).reshape(seen.shape), seen)
    step.units.use(parameter.parameter, parameter.coordinates, seen, None, step.place)
    if has_nothing(labels):
        labels = torch.where(labels == ZERO, seen, labels)
    return step.labelled(labels)


def _seen_by(step: Step, value: Value, parameter: Value) -> Tensor:
    """The units that each entry of a parameter meets in a pointwise operation, joined where it meets several."""
    labels = labels_or_fixed(value).expand(step.shape)
    lead = len(step.shape) - len(parameter.shape)
    for axis in range(len(step.shape)):
        if axis < lead or parameter.shape[axis - lead] == 1:
            first = labels.narrow(axis, 0, 1)
            if varies(labels)[axis]:
                first = labels.amax(axis, keepdim=True)
                step.units.join(labels, first, f"{step.place} by '{parameter.parameter}'")
            labels = first
    return labels.reshape(labels.shape[lead:])


@handles("div true_divide")
def multiply(step: Step, a: Any, b: Any, **kwargs: Any) -> Value:
    """Products of units with numbers, with what does not move, with parameters, and with other units."""
    a, b = _value(a), _value(b)
    if a.is_zero or (b.is_zero and step.operation == "mul"):
        return zeros(step.shape)
    if step.operation != "mul" and b.moves:
        step.forbid(b, reason="divide in")
        step.forbid(a, reason="are divided by units in")
        return step.fixed()
    if a.moves and b.moves:
        return gate(step, *((b, a) if _held(step, b) > _held(step, a) else (a, b)))
    for scale, value in ((b, a), (a, b)):
        if scale.parameter:
            return rescale(step, value, scale) if step.operation == "mul" else _refused(step, value, scale)
    if not (a.moves or b.moves):
        return step.fixed()
    varying, other = (a, b) if a.moves else (b, a)
    if differs_between_units(varying, other):
        _tell_apart(step, varying, other)
    return step.labelled(labels_or_fixed(varying))


def _tell_apart(step: Step, varying: Value, factor: Value) -> None:
    """Units that a factor differs between: apart, if it is the same for some of them (those of a head), else alone."""
    labels = labels_or_fixed(varying)
    lead, along = labels.ndim - len(factor.shape), varies(labels)
    between = [lead + i for i, n in enumerate(factor.shape) if n > 1 and along[lead + i]] if lead >= 0 else []
    if not between or max(axis for axis, varied in enumerate(along) if varied) in between:
        step.forbid(varying, kinds=["mix", "permute"], reason="are multiplied by numbers of their own in", odd=True)
        return
    rows = squeeze_repeats(labels)[0].movedim(between, list(range(len(between)))).flatten(0, len(between) - 1)
    for i, row in enumerate(rows):
        step.units.touch(row.unique().tolist(), (step.node, "", i))


def gate(step: Step, held: Value, free: Value) -> Value:
    """``a * b`` of units: the held factor keeps its scale, the product follows the free one; they permute together."""
    step.forbid(held, kinds=["mix", "scale"], reason="are held still as the gate of")
    step.forbid(free, kinds=["mix"], reason="are gated by", odd=True)
    x, y = torch.broadcast_tensors(labels_or_fixed(held), labels_or_fixed(free))
    step.units.couple(x, y, step.place)
    return step.labelled(nothing_where(x, y))


def _held(step: Step, value: Value) -> tuple[bool, ...]:
    """Whether the first unit of a value can keep its scale, and its sign, because it must."""
    labels, forbidden = labels_or_fixed(value), step.units.forbidden
    first = int(labels.reshape(-1)[0]) if labels.numel() else FIXED
    return (first in forbidden["scale"], first in forbidden["flip"])


def rescale(step: Step, value: Value, scale: Value) -> Value:
    """``gamma * h``: new units from old ones, one by one."""
    if scale.shape.numel() == 1:
        step.refuse(scale)
        return step.labelled(labels_or_fixed(value)) if value.moves else step.fixed()
    if value.shape.numel() == 1 and not (value.moves or value.parameter) and scale.shape == step.shape:
        return replace(scale, parameter=step.units.shift(scale.parameter, 0.0))
    if len(scale.shape) > len(step.shape) or value.parameter or scale.shape.numel() > MOST:
        return _refused(step, value, scale)
    right = _seen_by(step, value, scale) if value.moves else None
    fresh = as_units(step, scale, right)
    labels = labels_or_fixed(fresh)
    for units, kinds in ((value, ["mix"]), (fresh, ["mix"] if value.moves else ["mix", "permute"])):
        step.forbid(units, kinds=kinds, reason="are scaled one by one in", odd=True)
    if value.moves:
        seen, labels = torch.broadcast_tensors(labels_or_fixed(value), labels)
        step.units.couple(seen, labels, step.place)
        labels = nothing_where(seen, labels)
    return step.labelled(labels)


def _refused(step: Step, value: Value, parameter: Value) -> Value:
    step.refuse(parameter, value)
    step.forbid(value, reason=f"meet '{parameter.parameter}' in")
    return step.fixed()


def _value(number: Any) -> Value:
    return number if isinstance(number, Value) else Value(torch.Size(), constant=torch.tensor(number))
