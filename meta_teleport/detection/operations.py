"""What operations on one tensor mean for units: motions, pointwise functions, poolings, reductions.

Three families of motion pass or do not pass an operation: *mixing* units by a matrix passes what is linear and the same
for all units, *scaling* by positive numbers passes what is positively homogeneous, *permuting* passes what is the same
for all units.
"""

from typing import Any

import torch
from torch import Tensor

from meta_teleport.detection.units import FIXED, ZERO, Kind, distinct, squeeze_repeats, varies
from meta_teleport.detection.values import (
    SHAPES_ONLY,
    Step,
    Value,
    as_units,
    differs_between_units,
    handles,
    labels_or_fixed,
    rearranged,
    unknown,
)


@handles(
    "view reshape unsafe_view flatten unflatten transpose permute t numpy_T mT movedim swapaxes unsqueeze "
    "squeeze expand expand_as repeat flip unfold view_as pixel_shuffle pixel_unshuffle channel_shuffle"
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
            step.bar(value, kinds=["mix", "permute"], reason="are cut out of several places by")
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
        step.bar(value, reason="are rounded in")
        return step.fixed()
    return value


@handles(SHAPES_ONLY)
def forget(step: Step, value: Any = None, *args: Any, **kwargs: Any) -> Value:
    """The result depends on shapes only, and on what it is filled with."""
    step.bar(*(other for other in args if isinstance(other, Value)))
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
    """Zeros around a tensor are the same whatever moves; other paddings move entries about."""
    if value.labels is None:
        return step.fixed()
    mode = args[0] if args and isinstance(args[0], str) else "constant"
    filling = next((a for a in args if isinstance(a, (int, float))), 0)
    if mode == "constant":
        label = FIXED if filling else ZERO
        return step.labelled(torch.nn.functional.pad(value.labels, widths, value=label))
    spread = torch.nn.functional.pad(value.labels.double(), widths, mode=mode)
    return step.labelled(spread.long())


@handles("relu leaky_relu threshold abs")
def homogeneous(step: Step, value: Value, *args: Any, **kwargs: Any) -> Any:
    """sigma(s z) = s sigma(z) for s > 0, unit by unit."""
    if step.operation == "threshold" and any(a != 0 for a in args[:2]):
        return pointwise(step, value)
    step.bar(value, kinds=["mix"], reason="pass")
    return value if value.moves else step.fixed()


@handles("max_pool1d max_pool2d max_pool3d")
def max_pool(step: Step, value: Value, *args: Any, **kwargs: Any) -> Any:
    """Homogeneous over places, unit by unit."""
    step.bar(value, kinds=["mix"], reason="pass")
    return pool(step, value)


@handles("prelu")
def prelu(step: Step, value: Value, slope: Value) -> Value:
    """Homogeneous, whatever the slopes; units with slopes of their own cannot change places."""
    step.refuse(slope)
    step.bar(slope)
    step.bar(value, kinds=["mix"] if slope.shape.numel() == 1 else ["mix", "permute"], reason="pass")
    return value


@handles(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d"
)
def pool(step: Step, value: Value, *args: Any, **kwargs: Any) -> Any:
    """The same linear map for all channels, over as many trailing axes as the name of the operation says."""
    labels = value.labels
    if labels is None:
        return step.fixed()
    for axis in range(-int(step.operation[-2]), 0):
        if varies(labels)[axis]:
            step.bar(value, reason="are pooled with one another by")
            return step.fixed()
        labels = labels.narrow(axis, 0, 1)
    return step.labelled(labels)


@handles("neg positive")
def negate(step: Step, value: Value) -> Value:
    """Linear."""
    return value if value.moves else step.fixed()


@handles("dropout feature_dropout")
def dropout(step: Step, value: Value, p: float = 0.0, *args: Any) -> Any:
    """A mask of its own for every unit, whatever the mode: what holds in training holds in evaluation."""
    if p > 0:
        step.bar(value, kinds=["mix", "permute"], reason="pass")
    return value if value.moves else step.fixed()


@handles(
    "gelu silu sigmoid tanh exp log sqrt rsqrt pow softplus elu celu selu mish hardtanh hardswish hardsigmoid "
    "relu6 sin cos erf reciprocal square clamp clamp_min log_sigmoid softsign sign"
)
def pointwise(step: Step, value: Any, *args: Any, **kwargs: Any) -> Value:
    """The same function for all units, homogeneous or not."""
    others = [other for other in (*args, *kwargs.values()) if isinstance(other, Value)]
    step.bar(*others)
    if not isinstance(value, Value) or not value.moves:
        return step.fixed()
    kinds: list[Kind] = ["mix", "scale", "permute"] if others else ["mix", "scale"]
    step.bar(value, kinds=kinds, reason="pass, and are not positively homogeneous:")
    return step.labelled(labels_or_fixed(value))


@handles("mean sum")
def reduce(step: Step, value: Value, axes: Any = None, keep_axes: bool = False, **kwargs: Any) -> Value:
    """Reduces over places of a unit; units that are reduced over one another stand still."""
    if value.labels is None:
        return step.fixed()
    count = len(value.shape)
    given = [axes] if isinstance(axes, int) else axes or range(count)
    along = sorted(axis % count for axis in given)
    if any(varies(value.labels)[axis] for axis in along):
        step.bar(value, reason="are reduced over one another by")
        return step.fixed()
    labels = value.labels
    for axis in reversed(along):
        labels = labels.narrow(axis, 0, 1) if keep_axes else labels.select(axis, 0)
    return step.labelled(labels)


@handles("masked_fill")
def masked_fill(step: Step, value: Value, mask: Value, filling: Any) -> Value:
    """Zeros in some places."""
    if isinstance(filling, Value) or filling != 0:
        step.bar(value, *([filling] if isinstance(filling, Value) else []), reason="are replaced by numbers in")
        return step.fixed()
    if not value.moves:
        return step.fixed()
    apart = differs_between_units(value, mask)
    step.bar(value, kinds=["mix", "permute"] if apart else ["mix"], reason="are masked in")
    return step.labelled(labels_or_fixed(value))
