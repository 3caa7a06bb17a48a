"""What moves entries about means for units: views, parts, copies, tensors side by side, paddings."""

from math import inf
from typing import Any

import torch
from torch import Tensor

from meta_teleport.operations.labels import FIXED, ZERO, distinct, varies
from meta_teleport.operations.units import Kind
from meta_teleport.operations.values import (
    SHAPES_ONLY,
    Step,
    Value,
    as_units,
    handles,
    labels_or_fixed,
    rearranged,
    unknown,
    zeros,
)


@handles(
    "view reshape unsafe_view flatten unflatten transpose permute t numpy_T mT movedim swapaxes unsqueeze "
    "squeeze expand expand_as broadcast_to repeat flip unfold view_as reshape_as pixel_shuffle pixel_unshuffle "
    "channel_shuffle"
)
def move_about(step: Step, value: Value, *args: Any, **kwargs: Any) -> Any:
    """Entries change places."""
    if any(isinstance(a, torch.dtype) for a in args):
        return unknown(step, (value, *args), kwargs)
    return rearranged(step, (value, *args), kwargs, value)


@handles("repeat_interleave")
def repeat(step: Step, value: Value, times: Any, *args: Any, **kwargs: Any) -> Any:
    """Entries change places, by numbers that must be known."""
    if isinstance(times, Value):
        return unknown(step, (value, times, *args), kwargs)
    return rearranged(step, (value, times, *args), kwargs, value)


@handles("index")
def index(step: Step, value: Value, places: list[Any]) -> Any:
    """Entries at other places, whichever: units that are the same at all of them stay what they are. At places that are
    known, along one axis: parts of a tensor."""
    drawn = _drawn(step, value, places)
    if drawn is not None:
        return drawn
    along = [i for i, place in enumerate(places) if place is not None]
    if len(along) != 1 or places[along[0]].constant is None:
        return unknown(step, (value, places), {})
    return _parts(step, value, rearranged(step, (value, places), {}, value))


def _drawn(step: Step, value: Value, places: list[Any]) -> Value | None:
    """Units at places that do not depend on units; None where the units differ between places."""
    axes = [axis for axis, place in enumerate(places) if place is not None]
    if value.labels is None or axes != list(range(axes[0], axes[-1] + 1)) or any(places[axis].moves for axis in axes):
        return None
    if any(varies(value.labels)[axis] for axis in axes):
        return None
    labels = value.labels
    for axis in reversed(axes):
        labels = labels.select(axis, 0)
    for _ in range(len(step.shape) - labels.ndim):
        labels = labels.unsqueeze(axes[0])
    return step.labelled(labels)


@handles("roll")
def roll(step: Step, value: Value, shifts: Any, axes: Any = (), **kwargs: Any) -> Any:
    """Entries change places, along given axes only: a roll over all axes at once takes units from other places."""
    if not axes:
        return unknown(step, (value, shifts), kwargs)
    return rearranged(step, (value, shifts, axes), kwargs, value)


@handles("select slice narrow split split_with_sizes chunk unbind tensor_split")
def cut(step: Step, value: Value, *args: Any, **kwargs: Any) -> Any:
    """Parts of a tensor. The units of a part can go other ways than the rest."""
    return _parts(step, value, rearranged(step, (value, *args), kwargs, value))


def _parts(step: Step, value: Value, result: Any) -> Any:
    """Notes which units the parts of a value have."""
    if value.labels is None:
        return result
    whole = distinct(value.labels)
    for i, part in enumerate(result if isinstance(result, list) else [result]):
        if len(units := distinct(part.labels)) < len(whole):
            step.units.touch((unit for (unit,) in units), (step.node, "", i))
    return result


@handles("to to_copy type_as contiguous clone alias detach detach_copy lift_fresh_copy")
def keep(step: Step, value: Value, *args: Any, **kwargs: Any) -> Value:
    """Entries keep their places, and their values unless they are rounded to integers."""
    made = step.node.meta.get("val")
    if (value.moves or value.parameter) and isinstance(made, Tensor) and not made.is_floating_point():
        step.forbid(value, reason="are rounded in")
        return step.fixed()
    return value


@handles(SHAPES_ONLY)
def forget(step: Step, value: Any = None, *args: Any, **kwargs: Any) -> Value:
    """The result depends on shapes only, and on what it is filled with."""
    others = [other for other in (*args, *kwargs.values()) if isinstance(other, Value)]
    step.forbid(*others)
    step.refuse(*others)
    return zeros(step.shape) if "zero" in step.operation else step.fixed()


@handles("zeros new_zeros zeros_like")
def nothing(step: Step, *args: Any, **kwargs: Any) -> Value:
    """Zero, whatever moves."""
    made = step.node.meta.get("val")
    is_float = isinstance(made, Tensor) and made.is_floating_point()
    return step.labelled(torch.tensor(ZERO)) if is_float else step.fixed()


@handles("cat stack concat concatenate hstack vstack")
def join_tensors(step: Step, values: list[Value], *args: Any, **kwargs: Any) -> Value:
    """Tensors side by side."""
    values = [as_units(step, value) for value in values]
    target: Any = step.node.target
    if not any(value.moves or value.is_zero for value in values):
        return step.fixed()
    if not any(value.moves for value in values):
        known = [v.constant if v.is_zero else torch.tensor(torch.nan).expand(v.shape) for v in values]
        return Value(step.shape, constant=target(known, *args, **kwargs))
    labels = [torch.tensor(ZERO).expand(v.shape) if v.is_zero else labels_or_fixed(v) for v in values]
    return step.labelled(target(labels, *args, **kwargs))


@handles("pad constant_pad_nd")
def pad(step: Step, value: Value, widths: list[int], *args: Any) -> Value:
    """Along places a unit goes on, as the number that it is padded with; along units there is nothing. Other paddings
    move entries about. Padding with -inf, in front of a pooling, is the same whatever is scaled or permuted."""
    if value.labels is None:
        return step.fixed()
    mode = args[0] if args and isinstance(args[0], str) else "constant"
    filling = next((a for a in args if isinstance(a, (int, float))), 0)
    labels, along = value.labels, varies(value.labels)
    if filling and mode == "constant":
        kinds: list[Kind] = ["mix"] if filling == -inf else ["mix", "scale"]
        step.forbid(value, kinds=kinds, reason="are padded with a number by")
    beside = [0] * len(widths)
    for i in range(len(widths) // 2):
        axis = labels.ndim - 1 - i
        if along[axis]:
            beside[2 * i : 2 * i + 2] = widths[2 * i : 2 * i + 2]
        else:
            wide = [*labels.shape[:axis], step.shape[axis], *labels.shape[axis + 1 :]]
            labels = labels.narrow(axis, 0, 1).expand(wide)
    if any(beside) and mode == "constant":
        labels = torch.nn.functional.pad(labels, beside, value=FIXED if filling else ZERO)
    elif any(beside):
        labels = torch.nn.functional.pad(labels.double(), beside, mode=mode).long()
    return step.labelled(labels)
