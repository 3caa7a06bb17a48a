"""What operations on one tensor mean for units: motions, pointwise functions, poolings, reductions.

Three families of motion pass or do not pass an operation: *mixing* units by a matrix passes what is linear and the same
for all units, *scaling* by positive numbers passes what is positively homogeneous, *permuting* passes what is the same
for all units.
"""

from typing import Any

import torch
from torch import Tensor

from meta_teleport.detection.units import FIXED, ZERO, varies
from meta_teleport.detection.walk import Step, Value, as_units, handles, labels_or_fixed, rearranged


@handles(
    "view reshape unsafe_view flatten unflatten transpose permute t numpy_T mT movedim swapaxes unsqueeze "
    "squeeze select slice narrow split split_with_sizes chunk unbind tensor_split expand expand_as repeat "
    "repeat_interleave roll flip rot90 unfold view_as diagonal pixel_shuffle pixel_unshuffle channel_shuffle"
)
def move_about(step: Step, value: Value, *args: Any, **kwargs: Any) -> Any:
    """Entries change places."""
    return rearranged(step, (value, *args), kwargs, value)


@handles("to to_copy type_as contiguous clone alias detach detach_copy lift_fresh_copy")
def keep(step: Step, value: Value, *args: Any, **kwargs: Any) -> Value:
    """Entries keep their places."""
    return value


@handles(
    "new_zeros new_ones new_empty new_full zeros_like ones_like empty_like full_like rand_like randn_like "
    "assert_tensor_metadata sym_size size arange bernoulli zero fill"
)
def forget(step: Step, *args: Any, **kwargs: Any) -> Value:
    """The result depends on shapes only."""
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


@handles(
    "relu leaky_relu threshold max_pool1d max_pool2d max_pool3d adaptive_max_pool2d max_pool2d_with_indices "
    "rrelu_with_noise abs"
)
def homogeneous(step: Step, value: Value, *args: Any, **kwargs: Any) -> Any:
    """sigma(s z) = s sigma(z) for s > 0, unit by unit."""
    if step.operation == "threshold" and any(a != 0 for a in args[:2]):
        return pointwise(step, value)
    step.refuse(value)
    step.bar(value, kinds=["mix"], reason="pass")
    return pool(step, value)


@handles("prelu")
def prelu(step: Step, value: Value, slope: Value) -> Value:
    """Homogeneous, whatever the slopes; units with slopes of their own cannot change places."""
    step.refuse(slope)
    step.bar(value, kinds=["mix"] if slope.shape.numel() == 1 else ["mix", "permute"], reason="pass")
    return value


@handles(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "upsample_nearest2d upsample_bilinear2d"
)
def pool(step: Step, value: Value, *args: Any, **kwargs: Any) -> Any:
    """The same linear map for all channels, over the trailing axes that change size."""
    outputs = step.node.meta["val"]
    if not isinstance(outputs, Tensor):
        step.bar(value, reason="returns indices too:")
        return [Value(t.shape) for t in outputs]
    labels = value.labels
    if labels is None:
        return step.fixed()
    if value.shape == step.shape:
        return value
    for axis, (old, new) in enumerate(zip(value.shape, step.shape, strict=True)):
        if old != new:
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
    others = [other for other in args if isinstance(other, Value)]
    step.bar(*others)
    step.refuse(*others)
    if not isinstance(value, Value) or not value.moves:
        step.refuse(*([value] if isinstance(value, Value) else []))
        return step.fixed()
    step.bar(value, kinds=["mix", "scale"], reason="pass, and are not positively homogeneous:")
    return value


@handles("mean sum")
def reduce(step: Step, value: Value, axes: Any = None, keep_axes: bool = False, **kwargs: Any) -> Value:
    """Reduces over places of a unit; units that are reduced over one another stand still."""
    step.refuse(value)
    if value.labels is None:
        return step.fixed()
    count = len(value.shape)
    given = range(count) if axes is None else [axes] if isinstance(axes, int) else axes
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
        step.bar(value, reason="are replaced by numbers in")
        return step.fixed()
    step.bar(value, kinds=["mix"], reason="are masked in")
    return value if value.moves else step.fixed()
