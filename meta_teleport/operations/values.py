"""What is known of the tensors on the way through the graph of a model, and of the operations between them.

Operations that only move entries about (views, transposes, slices, windows, paddings) are executed on the labels
themselves, whatever they are; ``operations``, ``arithmetic`` and ``products`` say what all others mean for the units.
What nobody has said anything about forbids all motion to the units that reach it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from meta_teleport.operations.labels import FIXED, ZERO, squeeze_repeats, varies
from meta_teleport.operations.units import KINDS, Units

Role = Literal["choice", "sorted", "order", "places", "inverse", "counts", "ends", "rows"]


@dataclass(frozen=True)
class Routed:
    """What a tensor has to do with the experts that a router chooses, whose ``units`` stand for one each.

    A *choice* names experts; rows *sorted* ``by`` an operation stand in an *order*, whose *inverse* brings them back,
    at *places* computed from it; *counts* are of the rows of every expert, which have their *ends* there. A tensor of
    *rows* has them in that order along its first axis.
    """

    units: tuple[int, ...]
    role: Role
    by: Node | None = None

    def become(self, role: Role) -> "Routed":
        """The same in another role."""
        return replace(self, role=role)


@dataclass(frozen=True)
class Value:
    """What is known of a tensor of the graph.

    ``labels``: the unit of every entry, in the tensor's shape, mostly expanded. A parameter, or a view of one, has
    ``coordinates`` instead: which entry of ``parameter`` every entry is. Products of two units, ``k_i v_j`` summed over
    places, have a ``pair`` instead: the units along the last two axes. A tensor with none of these does not move;
    ``constant`` holds its numbers where they are known, and nan for those that are not. A ``buffer`` of the model does
    not move either, but where an operation knows how it changes places with units (running statistics). What is
    ``routed`` depends on the order of experts.
    """

    shape: torch.Size
    labels: Tensor | None = None
    parameter: str = ""
    coordinates: tuple[Tensor, ...] = ()
    constant: Tensor | None = None
    pair: tuple[Tensor, Tensor] | None = None
    buffer: str = ""
    routed: Routed | None = None

    @property
    def name(self) -> str:
        """The tensor of the model that this is, or a view of; empty where it is none."""
        return self.parameter or self.buffer

    @property
    def moves(self) -> bool:
        return self.labels is not None

    @property
    def is_zero(self) -> bool:
        """Whether all numbers are known to be zero, so that every linear map leaves them alone."""
        if self.labels is not None:
            return bool((squeeze_repeats(self.labels)[0] == ZERO).all())
        return self.constant is not None and not bool(self.constant.any())


Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}
SHAPES_ONLY = (
    "new_zeros new_ones new_empty new_full zeros_like ones_like empty_like full_like rand_like randn_like "
    "assert_tensor_metadata sym_size size arange zeros zero fill"
)
KEEP_ORDER = "view reshape unsafe_view flatten unflatten unsqueeze squeeze expand expand_as view_as repeat_interleave"


def handles(names: str) -> Callable[[Handler], Handler]:
    """Registers what the ATen operations in ``names`` (separated by spaces) mean for units:
    ``handler(step, *arguments) -> Value``."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names.split(), handler))
        return handler

    return register


@dataclass(frozen=True)
class Step:
    """One operation on the walk: the units of the model, the operation, where it stands, the shape of its result."""

    units: Units
    node: Node
    operation: str
    place: str
    shape: torch.Size

    @property
    def in_place(self) -> bool:
        """Whether the operation writes its result into its first argument."""
        target = getattr(self.node.target, "_overloadpacket", self.node.target)
        return str(getattr(target, "__name__", target)).endswith("_")

    def fixed(self) -> Value:
        """A result that does not move."""
        return Value(self.shape)

    def labelled(self, labels: Tensor) -> Value:
        """A result whose entries are these units."""
        return Value(self.shape, labels.expand(self.shape))

    def forbid(self, *values: Value, kinds: Iterable[Any] = KINDS, reason: str = "", odd: bool = False) -> None:
        """Forbids some kinds of motion to the units of some values; see :meth:`Units.forbid` for ``odd``."""
        for value in values:
            if value.labels is not None:
                self.units.forbid_labels(value.labels, kinds, f"{reason or 'reach'} {self.place}", odd)

    def refuse(self, *values: Value) -> None:
        """Notes of those values that are tensors of the model that they are used in a way in which no group can act on
        them."""
        for value in values:
            if value.name:
                self.units.use(value.name, value.coordinates, None, None, self.place)


def unknown(step: Step, args: Any, kwargs: Any) -> Any:
    """What reaches an operation without a handler does not move."""
    for value in tree_leaves((args, kwargs)):
        if isinstance(value, Value):
            step.forbid(value)
            step.refuse(value)
    outputs = step.node.meta.get("val")
    if isinstance(outputs, (list, tuple)):
        return [Value(t.shape) if isinstance(t, Tensor) else t for t in outputs]
    return step.fixed()


def rearranged(step: Step, args: Any, kwargs: Any, value: Value) -> Any:
    """The result of an operation that only moves entries about, by executing it on the labels of ``value``."""
    target: Any = torch.ops.aten.reshape if step.operation in ("view", "unsafe_view") else step.node.target

    def execute(labels: Tensor) -> Any:
        a, k = tree_map_only(Value, lambda v: labels if v is value else _stand_in(v), (args, kwargs))
        return target(*a, **k)

    if value.labels is not None:
        moved = execute(value.labels)
        if step.operation not in KEEP_ORDER.split() and not _is_grid(value.labels):
            places = _numbered(value.labels)
            for i, (part, where) in enumerate(zip(_listed(moved), _listed(execute(places)), strict=True)):
                _tell_apart(step, part, where, i)
        return _each(moved, lambda labels: Value(labels.shape, labels))
    if value.parameter:
        pieces = [execute(c) for c in value.coordinates]
        if pieces and isinstance(pieces[0], Tensor):
            return Value(pieces[0].shape, parameter=value.parameter, coordinates=tuple(pieces))
        return [Value(p[0].shape, parameter=value.parameter, coordinates=p) for p in zip(*pieces, strict=True)]
    if value.constant is not None:
        return _each(execute(value.constant), lambda constant: Value(constant.shape, constant=constant))
    outputs = step.node.meta.get("val")
    return _each(outputs, lambda t: Value(t.shape)) if outputs is not None else step.fixed()


def _is_grid(labels: Tensor) -> bool:
    """Whether units stand along one axis, each at one place of it: nothing can bring their places out of order."""
    along = [axis for axis, varied in enumerate(varies(labels)) if varied]
    if len(along) > 1:
        return not labels.numel()
    line = labels.movedim(along[0], 0).reshape(labels.shape[along[0]], -1)[:, 0] if along else labels.new_empty(0)
    return len(line.unique()) == len(line)


def _numbered(labels: Tensor) -> Tensor:
    """The number of every entry among those of its unit, in order."""
    order = labels.reshape(-1).argsort(stable=True)
    counts = labels.reshape(-1)[order].unique_consecutive(return_counts=True)[1]
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) - first).reshape(labels.shape)


def _tell_apart(step: Step, labels: Tensor, places: Tensor, part: int) -> None:
    """Units that are mixed or exchanged are so place by place, the first place of one with the first of the other:
    those whose places come in one order are touched together, apart from those of another."""
    flat = labels.reshape(-1)
    order = flat.argsort(stable=True)
    units, counts = flat[order].unique_consecutive(return_counts=True)
    alike: dict[tuple[int, ...], list[int]] = {}
    for unit, own in zip(units.tolist(), places.reshape(-1)[order].split(counts.tolist()), strict=True):
        alike.setdefault(tuple(own.tolist()), []).append(unit)
    for i, together in enumerate(alike.values() if len(alike) > 1 else ()):
        step.units.touch(together, (step.node, "", (part, i)))


def as_units(step: Step, value: Value, right: Tensor | None = None) -> Value:
    """A parameter that enters the activations by itself (a class token): every entry is a unit, made from ``right``."""
    if not value.parameter:
        return value
    seen = squeeze_repeats(*value.coordinates) if value.coordinates else []
    count = seen[0].numel() if seen else 1
    units = step.units.fresh(count, step.node).reshape(seen[0].shape if seen else ())
    step.units.use(value.parameter, value.coordinates, units, right, step.place)
    return Value(value.shape, units.expand(value.shape))


def labels_or_fixed(value: Value) -> Tensor:
    """The labels of a value; those of a tensor that does not move are all ``FIXED``."""
    return torch.tensor(FIXED).expand(value.shape) if value.labels is None else value.labels


def zeros(shape: torch.Size) -> Value:
    """A tensor of zeros."""
    return Value(shape, constant=torch.zeros(()).expand(shape))


def differs_between_units(varying: Value, other: Value) -> bool:
    """Whether a factor varies along an axis along which the units do."""
    lead = len(varying.shape) - len(other.shape)
    along = varies(labels_or_fixed(varying))
    return lead < 0 or any(along[lead + i] and n > 1 for i, n in enumerate(other.shape))


def _stand_in(value: Value) -> Tensor:
    return torch.empty(value.shape) if value.constant is None else value.constant


def _listed(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _each(outputs: Any, make: Callable[[Tensor], Value]) -> Any:
    return make(outputs) if isinstance(outputs, Tensor) else [make(o) for o in outputs]
