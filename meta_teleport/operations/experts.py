"""Routers: whole experts change places with the units of the router that chooses among them.

The largest of a router's units name, for every row, the experts that it is sent to. Where the units change places the
names do, and what is computed from them in the ways below: rows sorted by expert, the weight of the expert of every
row, and rows in their own order again. Anything else that is done to them bars the units.
"""

from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from meta_teleport.operations.labels import squeeze_repeats, still_where_nothing, varies
from meta_teleport.operations.units import KINDS, Units
from meta_teleport.operations.values import SHAPES_ONLY, Routed, Step, Value, handles, labels_or_fixed, unknown

SAME = (
    "view", "reshape", "unsqueeze", "squeeze", "flatten", "transpose", "permute", "t", "clone", "contiguous", "detach",
)  # fmt: skip
ROWWISE = ("silu", "gelu", "relu", "sigmoid", "tanh", "clone", "contiguous", "detach", "to")
BINARY = ("mul", "add", "sub", "div")
PARTS = ("chunk", "split", "unsqueeze", "squeeze", "slice", "select")
WIDE = (torch.int32, torch.int64, torch.float32, torch.float64)
GROUPED = ("grouped_mm", "grouped_mm_fallback")


@handles("softmax log_softmax")
def softmax(step: Step, value: Value, axis: int, dtype: Any = None) -> Value:
    """Units change places with their weights, row by row."""
    if not value.moves:
        return step.fixed()
    if not _among(step, value, axis, "pass, and are not positively homogeneous:"):
        result: Value = unknown(step, (value,), {})
        return result
    return step.labelled(still_where_nothing(labels_or_fixed(value)))


@handles("topk")
def largest(step: Step, value: Value, k: int, axis: int = -1, largest: bool = True, ordered: bool = True) -> Any:
    """The largest units, in order, and which they are."""
    if not value.moves or not ordered or not varies(labels_or_fixed(value))[axis]:
        return unknown(step, (value,), {})
    rows = _among(step, value, axis, "are compared with one another by")
    values, places = step.node.meta["val"]
    one = len(rows) == 1 and min(rows[0]) >= 0
    if not one:
        step.forbid(value, reason="are compared with one another by")
    return [Value(values.shape), Value(places.shape, routed=Routed(tuple(rows[0]), "choice") if one else None)]


def _among(step: Step, value: Value, axis: int, reason: str) -> list[list[int]]:
    """Notes which units an operation compares, row by row along an axis; none if a row has one of them twice."""
    labels = labels_or_fixed(value)
    seen = squeeze_repeats(labels.movedim(axis, -1))[0]
    rows = seen.expand(*seen.shape[:-1], labels.shape[axis]).reshape(-1, labels.shape[axis]).unique(dim=0).tolist()
    units = [[unit for unit in row if unit >= 0] for row in rows]
    if any(len({*row}) < len(row) for row in units):
        return []
    step.forbid(value, kinds=["mix", "scale"], reason=reason)
    for i, row in enumerate(units):
        step.units.touch(row, (step.node, "", i))
    return rows


def forbid_routed(units: Units, value: Any, place: str) -> None:
    """Bars the experts that a value names."""
    if isinstance(value, Value) and value.routed is not None:
        units.forbid(value.routed.units, KINDS, f"name experts in {place}")


def pass_on(step: Step, args: Any, kwargs: Any, result: Any) -> Any:
    """The ``result`` of an operation on values that depend on which experts are chosen, marked as what it is."""
    values = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Value)]
    meaning = _meaning(step, args, kwargs, values)
    if meaning is None:
        for value in values:
            forbid_routed(step.units, value, step.place)
        return result
    if isinstance(result, list):
        marks = meaning if isinstance(meaning, list) else [meaning] * len(result)
        return [replace(value, routed=mark or None) for value, mark in zip(result, marks, strict=True)]
    return replace(result, routed=meaning or None)


def _meaning(step: Step, args: Any, kwargs: Any, values: list[Value]) -> Any:
    """What the result is; a list where there are several, () if it does not depend on the order of experts; None if
    nobody knows."""
    routed = [value.routed for value in values if value.routed is not None]
    if not args or (step.operation != "index" and len({(mark.units, mark.by) for mark in routed}) > 1):
        return None
    first, mark = args[0], routed[0]
    if step.operation in SHAPES_ONLY.split():
        return () if len(routed) == 1 and first.routed else None
    if step.operation == "index":
        return _indexed(step, first, args[1])
    if step.operation == "index_put":
        return mark.become("inverse") if _is_inverse(step, args) and not kwargs else None
    if step.operation in GROUPED:
        return _grouped(step, *args, **kwargs)
    if any(value.routed is None for value in values) and step.operation not in (*BINARY, "linear"):
        return None
    if mark.role == "rows":
        return mark if _is_row_by_row(step, args, values) else None
    if len(values) > 1:
        return None
    return None if step.operation.endswith("sort") and kwargs else _of_names(step, first, args, mark)


def _of_names(step: Step, first: Value, args: Any, mark: Routed) -> Any:
    """What becomes of names of experts, of an order of rows, and of counts."""
    experts, flat = len(mark.units), len(first.shape) == 1
    if step.operation == "to" or (step.operation in SAME and mark.role == "choice"):
        is_plain = not any(isinstance(argument, torch.dtype) for argument in args) or step.operation == "to"
        return mark if is_plain and step.node.meta["val"].dtype in WIDE else None
    if step.operation == "sort" and flat and mark.role == "choice" and len(args) == 1:
        return [replace(mark, role="sorted", by=step.node), replace(mark, role="order", by=step.node)]
    if step.operation == "argsort" and flat and len(args) == 1 and mark.role in ("choice", "order"):
        return mark.become("inverse") if mark.role == "order" else replace(mark, role="order", by=step.node)
    if step.operation == "floor_divide" and mark.role == "order":
        return mark.become("places")
    if step.operation == "histc" and mark.role == "sorted" and args[1:] == (experts, 0, experts - 1):
        return mark.become("counts")
    return mark.become("ends") if step.operation == "cumsum" and mark.role == "counts" else None


def _indexed(step: Step, value: Value, places: list[Any]) -> Any:
    """Rows in the order of experts, in their own order again; weights of the expert of every row."""
    (at, *others), mark = places, value.routed
    if others or at is None or at.routed is None:
        return None
    role = at.routed.role
    if value.parameter and role in ("choice", "sorted"):
        return (at.routed.become("rows") if role == "sorted" else ()) if _use(step, value, at.routed) else None
    if mark is None and role in ("order", "places"):
        return at.routed.become("rows")
    if mark is None or (mark.units, len(at.shape)) != (at.routed.units, 1):
        return None
    if mark.role == "choice" and role == "order" and step.node.args[0] is at.routed.by.args[0]:
        return at.routed.become("sorted")
    return () if mark == at.routed.become("rows") and role == "inverse" else None


def _is_inverse(step: Step, args: Any) -> bool:
    """Whether ``start[order] = arange(n)``."""
    numbers = step.node.args[2]
    target, given = getattr(numbers, "target", None), getattr(numbers, "args", ())
    known = target is torch.ops.aten.arange.default and given == (args[0].shape[0],) and len(args[0].shape) == 1
    value = args[1][0] if len(args[1]) == 1 else None
    return known and value is not None and value.routed is not None and value.routed.role == "order" and len(args) == 3


def _grouped(step: Step, x: Value, weight: Value, ends: Value | None = None, *args: Any, **kwargs: Any) -> Any:
    mark = x.routed
    if mark is None or ends is None or ends.routed != mark.become("ends") or args or kwargs:
        return None
    return mark if mark.role == "rows" and _use(step, weight, mark) else None


def _use(step: Step, weight: Value, mark: Routed) -> bool:
    """Notes that every expert has its own entry along the first axis of a weight."""
    if not weight.parameter or weight.shape[0] != len(mark.units) or step.units.behind(weight.parameter):
        return False
    experts = torch.tensor(mark.units).reshape(-1, *[1] * (len(weight.shape) - 1))
    step.units.use(weight.parameter, weight.coordinates, None, experts, step.place, of_experts=True)
    return True


def _is_row_by_row(step: Step, args: Any, values: list[Value]) -> bool:
    """Whether each row of the result is made of the same row, and of what is the same for all rows."""
    depth = len(step.shape)
    if step.operation in ROWWISE:
        return len(values) == 1
    if step.operation in BINARY:
        return all(len(v.shape) == depth if v.routed else len(v.shape) < depth or v.shape[0] == 1 for v in values)
    if step.operation in PARTS:
        first, *numbers = args
        axis = (*numbers, 0, 0)[1 if step.operation in ("chunk", "split") else 0]
        return isinstance(axis, int) and axis % (len(first.shape) + (step.operation == "unsqueeze")) != 0
    return step.operation == "linear" and values[0].routed is not None and all(v.routed is None for v in values[1:])
