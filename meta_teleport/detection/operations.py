"""What functions of one tensor mean for units: pointwise functions, poolings, reductions.

Three families of motion pass or do not pass an operation: *mixing* units by a matrix passes what is linear and the same
for all units, *scaling* by positive numbers passes what is positively homogeneous, *permuting* passes what is the same
for all units.
"""

from dataclasses import replace
from typing import Any

from meta_teleport.detection.units import Kind, still_where_nothing, varies
from meta_teleport.detection.values import (
    Step,
    Value,
    differs_between_units,
    handles,
    labels_or_fixed,
)


@handles("relu leaky_relu threshold abs")
def homogeneous(step: Step, value: Value, *args: Any, **kwargs: Any) -> Value:
    """sigma(s z) = s sigma(z) for s > 0, unit by unit."""
    if step.operation == "threshold" and any(a != 0 for a in args[:2]):
        return pointwise(step, value)
    step.forbid(value, kinds=["mix"], reason="pass")
    return value if value.moves else step.fixed()


@handles("max_pool1d max_pool2d max_pool3d")
def max_pool(step: Step, value: Value, *args: Any, **kwargs: Any) -> Value:
    """Homogeneous over places, unit by unit."""
    step.forbid(value, kinds=["mix"], reason="pass")
    return pool(step, value)


@handles("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d")
def max_pool_and_places(step: Step, value: Value, *args: Any, **kwargs: Any) -> list[Value]:
    """The largest values, and where they stand."""
    largest, places = step.node.meta["val"]
    return [max_pool(replace(step, shape=largest.shape), value), Value(places.shape)]


@handles("clamp clamp_min")
def clamp(step: Step, value: Value, low: Any = None, high: Any = None) -> Value:
    """``max(h, 0)`` is ReLU."""
    if high is None and not isinstance(low, Value) and low == 0:
        return homogeneous(step, value)
    return pointwise(step, value, *(bound for bound in (low, high) if bound is not None))


@handles("prelu")
def prelu(step: Step, value: Value, slope: Value) -> Value:
    """Homogeneous, whatever the slopes; units with slopes of their own cannot change places."""
    step.refuse(slope)
    step.forbid(slope)
    step.forbid(value, kinds=["mix"] if slope.shape.numel() == 1 else ["mix", "permute"], reason="pass")
    return value


@handles(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d"
)
def pool(step: Step, value: Value, *args: Any, **kwargs: Any) -> Value:
    """The same linear map for all channels, over as many trailing axes as the name of the operation says."""
    labels = value.labels
    if labels is None:
        return step.fixed()
    for axis in range(-int(step.operation[-2]), 0):
        if varies(labels)[axis]:
            step.forbid(value, reason="are pooled with one another by")
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
        step.forbid(value, kinds=["mix", "permute"], reason="pass")
    return value if value.moves else step.fixed()


ZERO_AT_ZERO = "gelu silu tanh elu celu selu mish hardswish relu6 sin erf square softsign sign"


@handles(
    "gelu silu sigmoid tanh exp log sqrt rsqrt pow softplus elu celu selu mish hardtanh hardswish hardsigmoid "
    "relu6 sin cos erf reciprocal square log_sigmoid softsign sign"
)
def pointwise(step: Step, value: Any, *args: Any, **kwargs: Any) -> Value:
    """The same function for all units, homogeneous or not."""
    others = [other for other in (*args, *kwargs.values()) if isinstance(other, Value)]
    step.forbid(*others)
    if not isinstance(value, Value) or not value.moves:
        return step.fixed()
    kinds: list[Kind] = ["mix", "scale", "permute"] if others else ["mix", "scale"]
    step.forbid(value, kinds=kinds, reason="pass, and are not positively homogeneous:")
    labels = labels_or_fixed(value)
    return step.labelled(labels if step.operation in ZERO_AT_ZERO.split() else still_where_nothing(labels))


@handles("mean sum")
def reduce(step: Step, value: Value, axes: Any = None, keep_axes: bool = False, **kwargs: Any) -> Value:
    """Reduces over places of a unit; units that are reduced over one another stand still."""
    if value.labels is None:
        return step.fixed()
    count = len(value.shape)
    given = [axes] if isinstance(axes, int) else axes or range(count)
    along = sorted(axis % count for axis in given)
    if any(varies(value.labels)[axis] for axis in along):
        step.forbid(value, reason="are reduced over one another by")
        return step.fixed()
    labels = value.labels
    for axis in reversed(along):
        labels = labels.narrow(axis, 0, 1) if keep_axes else labels.select(axis, 0)
    return step.labelled(labels)


@handles("amax amin")
def extreme(step: Step, value: Value, axes: Any = None, keep_axes: bool = False, **kwargs: Any) -> Value:
    """Positively homogeneous over the places of a unit."""
    step.forbid(value, kinds=["mix"], reason="pass")
    return reduce(step, value, axes, keep_axes)


@handles("masked_fill")
def masked_fill(step: Step, value: Value, mask: Value, filling: Any) -> Value:
    """Zeros in some places."""
    if isinstance(filling, Value) or filling != 0:
        step.forbid(value, *([filling] if isinstance(filling, Value) else []), reason="are replaced by numbers in")
        return step.fixed()
    if not value.moves:
        return step.fixed()
    apart = differs_between_units(value, mask)
    step.forbid(value, kinds=["mix", "permute"] if apart else ["mix"], reason="are masked in")
    return step.labelled(labels_or_fixed(value))
