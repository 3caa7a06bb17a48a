"""What functions of one tensor mean for units: pointwise functions, poolings, reductions.

Four families of motion pass or do not pass an operation: *mixing* units by a matrix passes what is linear and the same
for all units, *scaling* by positive numbers passes what is positively homogeneous, *flipping* signs passes what is odd,
*permuting* passes what is the same for all units.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from meta_teleport.operations.arithmetic import larger, masked
from meta_teleport.operations.labels import FIXED, ZERO, squeeze_repeats, still_where_nothing, varies
from meta_teleport.operations.units import Kind
from meta_teleport.operations.values import (
    Step,
    Value,
    handles,
    labels_or_fixed,
    unknown,
)

ODD = (
    "tanh sinh asinh arcsinh atan arctan tan asin arcsin atanh arctanh sin erf erfinv softsign tanhshrink hardshrink "
    "reciprocal sign"
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
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
    "upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d upsample_trilinear3d "
    "upsample_bilinear2d_aa upsample_bicubic2d_aa"
)
def pool(step: Step, value: Value, *args: Any, **kwargs: Any) -> Value:
    """The same linear map for all channels, over as many trailing axes as the name of the operation says. Zeros that
    stand beside a unit are pooled with it."""
    labels = value.labels
    if labels is None:
        return step.fixed()
    space = next(int(letter) for letter in step.operation if letter.isdigit())
    for axis in range(-space, 0):
        if not varies(labels)[axis]:
            labels = labels.narrow(axis, 0, 1)
            continue
        unit = labels.amax(axis, keepdim=True)
        if bool(((labels != unit) & (labels != ZERO)).any()):
            step.forbid(value, reason="are pooled with one another by")
            return step.fixed()
        labels = unit
    return step.labelled(labels)


@handles("neg positive")
def negate(step: Step, value: Value) -> Value:
    """Linear."""
    return value if value.moves else step.fixed()


@handles("dropout feature_dropout")
def dropout(step: Step, value: Value, *args: Any) -> Any:
    """A mask of its own for every unit, whatever the mode and the rate: one of zero may be raised."""
    step.forbid(value, kinds=["mix", "permute"], reason="pass", odd=True)
    return value if value.moves else step.fixed()


ZERO_AT_ZERO = set(f"gelu silu elu celu selu mish hardswish relu6 square {ODD}".split()) - {"reciprocal"}


@handles(
    "gelu silu sigmoid exp exp2 expm1 log log1p log2 log10 sqrt rsqrt pow softplus elu celu selu mish hardtanh "
    f"hardswish hardsigmoid relu6 cos cosh square log_sigmoid {ODD}"
)
def pointwise(step: Step, value: Any, *args: Any, **kwargs: Any) -> Value:
    """The same function for all units, homogeneous or not, odd or not."""
    others = [other for other in (*args, *kwargs.values()) if isinstance(other, Value)]
    step.forbid(*others)
    if not isinstance(value, Value) or not value.moves:
        return step.fixed()
    kinds: list[Kind] = ["mix", "scale", "permute"] if others else ["mix", "scale"]
    odd = not others and not kwargs and _is_odd(step.operation, args)
    step.forbid(value, kinds=kinds, reason="pass, and are not positively homogeneous:", odd=odd)
    labels = labels_or_fixed(value)
    return step.labelled(labels if step.operation in ZERO_AT_ZERO else still_where_nothing(labels))


def _is_odd(operation: str, numbers: tuple[Any, ...]) -> bool:
    """Whether f(-z) = -f(z): by the name of f, or by the numbers that come with it."""
    if operation == "pow":
        return bool(numbers[0] % 2 == 1)
    if operation in ("hardtanh", "clamp") and numbers:
        return len(numbers) == 2 and bool(-numbers[0] == numbers[1] >= 0)
    return operation in (*ODD.split(), "hardtanh")


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


@handles("linalg_vector_norm")
def length(step: Step, value: Value, order: Any = 2, axes: Any = None, *args: Any, **kwargs: Any) -> Value:
    """The length of a row of units stays where they change places or signs among themselves."""
    along = [axes] if isinstance(axes, int) else axes or range(len(value.shape))
    labels = labels_or_fixed(value)
    if len(along) != 1 or not varies(labels)[along[0]]:
        result: Value = unknown(step, (value,), {})
        return result
    step.forbid(value, kinds=["mix", "scale"], reason="are measured together in", odd=True)
    rows = squeeze_repeats(labels.movedim(along[0], -1))[0]
    for i, row in enumerate(rows.reshape(-1, rows.shape[-1]).unique(dim=0).tolist()):
        step.units.touch(row, (step.node, "", i))
    return step.fixed()


@handles("amax amin")
def extreme(step: Step, value: Value, axes: Any = None, keep_axes: bool = False, **kwargs: Any) -> Value:
    """Positively homogeneous over the places of a unit."""
    step.forbid(value, kinds=["mix"], reason="pass")
    return reduce(step, value, axes, keep_axes)


@handles("max min")
def extreme_or_larger(step: Step, value: Value, *args: Any, **kwargs: Any) -> Any:
    """Of two tensors, entry by entry; or along an axis, with the places at which it stands."""
    if args and isinstance(args[0], Value):
        return larger(step, value, args[0])
    made = step.node.meta["val"]
    if isinstance(made, Tensor):
        return extreme(step, value)
    dim, keep = (*args, *kwargs.values(), False)[:2]
    return [extreme(replace(step, shape=made[0].shape), value, dim, keep), Value(made[1].shape)]


@handles("gt ge lt le eq ne")
def compare(step: Step, value: Any, other: Any) -> Value:
    """``h > 0``: stands still while h is scaled, and changes places with it."""
    if not (isinstance(value, Value) and value.moves) or isinstance(other, Value) or other != 0:
        result: Value = unknown(step, (value, other), {})
        return result
    seen = squeeze_repeats(labels_or_fixed(value))[0]
    units = seen[seen >= 0].unique()
    held = torch.full_like(seen, FIXED)
    held[seen >= 0] = step.units.fresh(len(units), step.node)[torch.searchsorted(units, seen[seen >= 0])]
    step.units.couple(seen, held, step.place)
    step.units.forbid_labels(held, ["mix", "scale"], f"are signs of units in {step.place}")
    step.forbid(value, kinds=["mix"], reason="are compared with zero by")
    return step.labelled(held)


@handles("masked_fill")
def masked_fill(step: Step, value: Value, mask: Value, filling: Any) -> Value:
    """Zeros in some places."""
    if isinstance(filling, Value) or filling != 0:
        others = [other for other in (mask, filling) if isinstance(other, Value)]
        step.forbid(value, *others, reason="are replaced by numbers in")
        return step.fixed()
    step.forbid(value, kinds=["mix"], reason="are masked in", odd=True)
    return masked(step, mask, value)
