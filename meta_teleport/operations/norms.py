"""Norms over units and over channels, whose statistics change places with them, and weights that are normalized."""

from typing import Any

import torch
from torch import Tensor

from meta_teleport.operations.labels import FIXED, differ, squeeze_repeats
from meta_teleport.operations.units import Normalized
from meta_teleport.operations.values import Step, Value, as_units, handles, labels_or_fixed


@handles("layer_norm rms_norm")
def layer_norm(step: Step, value: Value, shape: Any, weight: Any = None, shift: Any = None, *args: Any) -> Value:
    """Normalizes over units, so they stand still; its scale and shift make new units."""
    return affine(step, value, weight, shift if isinstance(shift, Value) else None, lead=len(value.shape) - len(shape))


@handles("group_norm")
def group_norm(step: Step, value: Value, groups: int, weight: Any = None, shift: Any = None, *args: Any) -> Value:
    """Normalizes over groups of channels."""
    return affine(step, value, weight, shift, lead=1)


def affine(step: Step, value: Value, weight: Any, shift: Any, lead: int) -> Value:
    """The scale and shift of a norm, along the axes from ``lead`` on."""
    step.forbid(value, reason="are normalized by")
    step.forbid(*(other for other in (weight, shift) if isinstance(other, Value)))
    if not (isinstance(weight, Value) and weight.parameter):
        return step.fixed()
    fresh = as_units(step, weight)
    labels = labels_or_fixed(fresh)
    step.units.forbid_labels(labels, ["mix", "permute"], f"are scaled one by one in {step.place}", odd=True)
    if isinstance(shift, Value) and shift.parameter:
        step.units.use(shift.parameter, shift.coordinates, labels, None, step.place)
    elif isinstance(shift, Value):
        step.forbid(fresh, reason="are added to what does not move in")
    behind = len(step.shape) - lead - labels.ndim
    return step.labelled(labels.reshape(*labels.shape, *[1] * behind))


@handles("batch_norm instance_norm")
def batch_norm(step: Step, value: Value, weight: Any = None, shift: Any = None, *args: Any) -> Value:
    """Normalizes channel by channel: units change places together with the scale, the shift and the running statistics
    of their channels. ``args`` begin with the running mean and variance, and whether they are computed anew."""
    if value.parameter and shift is None and args[:3] == (None, None, True):
        return _normalized(step, value, 1, weight)
    if not value.moves or not (weight is None or weight.parameter) or not (shift is None or shift.parameter):
        return affine(step, value, weight, shift, lead=1)
    step.forbid(value, kinds=["mix", "scale"], reason="are normalized by")
    read = _channels(step, value)
    for statistic in (other for other in args[:2] if isinstance(other, Value)):
        if not statistic.buffer:
            step.forbid(value, statistic, reason="are normalized by computed statistics in")
        else:
            step.units.use(statistic.buffer, statistic.coordinates, read, None, step.place)
    made = torch.where(read < 0, FIXED, read) if weight is None else labels_or_fixed(as_units(step, weight, read))
    if weight is not None:
        step.units.couple(read, made, step.place)
        step.units.forbid_labels(made, ["mix"], f"are scaled one by one in {step.place}")
    if shift is not None:
        step.units.use(shift.parameter, shift.coordinates, made, None, step.place)
    return step.labelled(made.reshape(-1, *[1] * (len(step.shape) - 2)))


@handles("weight_norm weight_norm_interface")
def weight_norm(step: Step, value: Value, gain: Value, axis: int = 0) -> Value:
    """``g v / |v|``, row by row."""
    return _normalized(step, value, axis, gain)


def _normalized(step: Step, value: Value, axis: int, gain: Value | None) -> Value:
    """A weight whose entries along ``axis`` are normalized, each over all others, and then scaled by a gain."""
    count = value.shape[axis]
    index = torch.arange(count).reshape([-1 if i == axis % len(value.shape) else 1 for i in range(len(value.shape))])
    own = [i for i, coordinate in enumerate(value.coordinates) if not differ(coordinate, index.expand(value.shape))]
    names = {value.parameter} if gain is None else {value.parameter, gain.parameter}
    known = all(names) and not names & step.units.normalized.keys()
    if not own or not known or not (gain is None or gain.shape.numel() == count):
        step.refuse(value, *([] if gain is None else [gain]))
        return step.fixed()
    name, coordinates = ("", ()) if gain is None else (gain.parameter, tuple(c.reshape(-1) for c in gain.coordinates))
    weight = f"{value.parameter} normalized along {own[0]} by {name or 'nothing'}"
    step.units.normalized[weight] = Normalized(value.parameter, own[0], name, coordinates)
    return Value(step.shape, parameter=weight, coordinates=value.coordinates)


def _channels(step: Step, value: Value) -> Tensor:
    """The unit of every channel, joined over all places."""
    count = value.shape[1]
    labels = squeeze_repeats(labels_or_fixed(value).movedim(1, -1))[0]
    labels = labels.expand(*labels.shape[:-1], count).reshape(-1, count)
    units = labels.amax(0)
    if bool((labels != units).any()):
        step.units.join(labels, units, step.place)
    return units
