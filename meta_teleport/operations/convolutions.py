"""What convolutions mean for units: layers of channels, in groups."""

from typing import Any

from torch import Tensor

from meta_teleport.operations.products import layer, two_varying, units_along, with_bias
from meta_teleport.operations.units import Kind
from meta_teleport.operations.values import Step, Value, handles


@handles("conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d")
def convolve(step: Step, x: Value, weight: Value, bias: Value | None = None, *args: Any) -> Value:
    """A convolution ``(o, i / groups, ...)``: every output channel reads the input channels of its group, and changes
    places with its only one (depthwise). Transposed ones ``(i, o / groups, ...)`` are layers whose weight stands the
    other way round."""
    if not weight.parameter or step.operation == "convolution":
        return two_varying(step, x, weight, bias)
    space = len(weight.shape) - 2
    channel, turned = -space - 1, "transpose" in step.operation
    groups = (step if turned else x).shape[channel] // weight.shape[1]
    if groups == 1:
        return layer(step, x, weight, channel, 0 if turned else 1, bias)
    step.refuse(x)
    read = units_along(step, x, channel)
    made = step.units.fresh(step.shape[channel], step.node)
    single = read is not None and len(read) == len(made) == groups
    for units in (made, read):
        if units is not None:
            kinds: list[Kind] = ["mix"] if single else ["mix", "permute"]
            step.units.forbid_labels(units, kinds, f"belong to groups in {step.place}", odd=True)
    if read is not None and single:
        step.units.couple(read, made, step.place)
    across, within = weight.shape[0] // groups, weight.shape[1]

    def placed(units: Tensor, rows: bool) -> Tensor:
        """Units in the shape of the weight: along its rows, or along the columns of the rows of their group."""
        if rows:
            return units.reshape(-1, *[1] * (space + 1))
        columns = units.reshape(groups, 1, within).expand(groups, across, within)
        return columns.reshape(groups * across, within, *[1] * space)

    right = None if read is None else placed(read, rows=turned)
    step.units.use(weight.parameter, weight.coordinates, placed(made, rows=not turned), right, step.place)
    return with_bias(step, step.labelled(made.reshape(-1, *[1] * space)), made, bias)
