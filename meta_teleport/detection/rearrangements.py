"""What moves entries about means for units: views, parts, copies, tensors side by side, paddings."""

from math import inf
from typing import Any

import torch
from torch import Tensor

from meta_teleport.detection.units import FIXED, ZERO, distinct, squeeze_repeats, varies
from meta_teleport.detection.values import (
    SHAPES_ONLY,
    Step,
    Value,
    as_units,
    handles,
    labels_or_fixed,
    rearranged,
    unknown,
)


@handles(
    "view reshape unsafe_view flatten unflatten transpose permute t numpy_T mT movedim swapaxes unsqueeze "
    "squeeze expand expand_as repeat flip unfold view_as reshape_as pixel_shuffle pixel_unshuffle channel_shuffle"
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
    """Entries at other places, whichever: units that are the same at all of them stay what they are."""
    drawn = _drawn(step, value, places)
    return unknown(step, (value, places), {}) if drawn is None else drawn


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
    result = rearranged(step, (value, *args), kwargs, value)
    if value.labels is None:
        return result
    first = 0 if step.operation in ("select", "slice", "narrow", "unbind") else 1
    axis = kwargs.get("dim", args[first] if len(args) > first else 0)
    whole = distinct(value.labels)
    for i, part in enumerate(result if isinstance(result, list) else [result]):
        if len(units := distinct(part.labels)) < len(whole):
            step.units.touch((unit for (unit,) in units), (step.node, "", i))
        if part.labels.ndim == value.labels.ndim and varies(part.labels)[axis] and _repeats(value.labels, axis):
            step.forbid(value, kinds=["mix", "permute"], reason="are cut out of several places by")
    return result


def _repeats(labels: Tensor, axis: int) -> bool:
    """Whether a unit stands at more than one place along an axis."""
    lines = squeeze_repeats(labels)[0].movedim(axis, -1).sort(-1).values
    return bool((lines[..., 1:] == lines[..., :-1]).any())


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
    step.forbid(*(other for other in args if isinstance(other, Value)))
    return step.fixed()


@handles("cat stack concat concatenate hstack vstack")
def join_tensors(step: Step, values: list[Value], *args: Any, **kwargs: Any) -> Value:
    """Tensors side by side."""
    values = [as_units(step, value) for value in values]
    if not any(value.moves for value in values):
        return step.fixed()
    target: Any = step.node.target
    return step.labelled(target([labels_or_fixed(value) for value in values], *args, **kwargs))


@handles("pad constant_pad_nd")
def pad(step: Step, value: Value, widths: list[int], *args: Any) -> Value:
    """Zeros around a tensor are the same whatever moves, -inf whatever is scaled or permuted; other paddings move
    entries about."""
    if value.labels is None:
        return step.fixed()
    mode = args[0] if args and isinstance(args[0], str) else "constant"
    filling = next((a for a in args if isinstance(a, (int, float))), 0)
    if mode == "constant":
        if filling == -inf:  # in front of a pooling; the same under scalings and permutations
            step.forbid(value, kinds=["mix"], reason="stand beside -inf in")
        label = ZERO if filling in (0, -inf) else FIXED
        return step.labelled(torch.nn.functional.pad(value.labels, widths, value=label))
    spread = torch.nn.functional.pad(value.labels.double(), widths, mode=mode)
    return step.labelled(spread.long())
