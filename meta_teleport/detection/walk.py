"""Walking the graph of a model: each tensor is replaced by labels that say which unit every entry is.

Operations that only move entries about (views, transposes, slices, windows, paddings) are executed on the labels
themselves, whatever they are; ``operations`` and ``products`` say what all others mean for the units. What nobody has
said anything about bars the units that reach it.
"""

import operator
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map_only

from meta_teleport.detection.trace import Trace, place
from meta_teleport.detection.units import FIXED, KINDS, Units, squeeze_repeats


@dataclass(frozen=True)
class Value:
    """What is known of a tensor of the graph.

    ``labels``: the unit of every entry, in the tensor's shape, mostly expanded. A parameter, or a view of one, has
    ``coordinates`` instead: which entry of ``parameter`` every entry is. A tensor with neither does not move;
    ``constant`` holds its numbers where they are known.
    """

    shape: torch.Size
    labels: Tensor | None = None
    parameter: str = ""
    coordinates: tuple[Tensor, ...] = ()
    constant: Tensor | None = None

    @property
    def moves(self) -> bool:
        return self.labels is not None


Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}


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

    def fixed(self) -> Value:
        """A result that does not move."""
        return Value(self.shape)

    def labelled(self, labels: Tensor) -> Value:
        """A result whose entries are these units."""
        return Value(self.shape, labels.expand(self.shape))

    def bar(self, *values: Value, kinds: Iterable[Any] = KINDS, reason: str = "") -> None:
        """Bars the units of some values."""
        for value in values:
            if value.labels is not None:
                self.units.bar_labels(value.labels, kinds, f"{reason or 'reach'} {self.place}")

    def refuse(self, *values: Value) -> None:
        """Notes of those values that are parameters that they are used in a way in which no group can act on them."""
        for value in values:
            if value.parameter:
                self.units.use(value.parameter, value.coordinates, None, None, self.place)


class Walk:
    """One pass over the graph of a model. ``frozen`` are the parameters that must not move."""

    def __init__(self, traced: Trace, frozen: Collection[str] = ()) -> None:
        self.units, self.trace, self.frozen = Units(), traced, frozen

    def run(self) -> Units:
        """The units of the model with all marks on them. What frozen parameters see or make, and what the model
        returns, is barred."""
        outputs = self._walk(self.trace.graph, None)
        for value in tree_leaves(outputs):
            if isinstance(value, Value) and value.labels is not None:
                self.units.bar_labels(value.labels, KINDS, "are outputs of the model")
        for use in self.units.uses:
            for labels in (use.left, use.right) if use.parameter in self.frozen else ():
                if labels is not None:
                    self.units.bar_labels(labels, KINDS, f"depend on '{use.parameter}', which is frozen")
        return self.units

    def _walk(self, graph: torch.fx.Graph, inputs: list[Any] | None) -> Any:
        known: dict[Node, Any] = {}
        given = iter(inputs or ())
        for node in graph.nodes:
            if node.op == "placeholder":
                known[node] = self._placeholder(node) if inputs is None else next(given)
            elif node.op == "get_attr":
                known[node] = getattr(graph.owning_module, str(node.target), None)
            elif node.op == "output":
                return torch.fx.node.map_arg(node.args[0], known.__getitem__)
            else:
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = self._call(node, args, kwargs)
                if _in_place(node) and isinstance(node.args[0], Node):
                    known[node.args[0]] = known[node]
        raise AssertionError("a graph without an output")

    def _placeholder(self, node: Node) -> Value:
        shape = _shape(node)
        name = self.trace.parameters.get(node.name)
        if name is not None:
            axes = [torch.arange(n) for n in shape]
            grid = (axis.reshape([-1 if i == j else 1 for j in range(len(shape))]) for i, axis in enumerate(axes))
            return Value(shape, parameter=name, coordinates=tuple(axis.expand(shape) for axis in grid))
        return Value(shape, constant=self.trace.constants.get(node.name))

    def _call(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.target is operator.getitem:
            return args[0][args[1]]
        body = next((a for a in args if isinstance(a, GraphModule)), None)
        if body is not None:
            return self._walk(body.graph, [a for a in args[args.index(body) + 1 :]])
        operation = str(getattr(getattr(node.target, "_overloadpacket", node.target), "__name__", node.target))
        step = Step(self.units, node, operation.strip("_"), place(node), _shape(node))
        handler = HANDLERS.get(step.operation)
        if handler is not None:
            return handler(step, *args, **kwargs)
        return unknown(step, args, kwargs)


def unknown(step: Step, args: Any, kwargs: Any) -> Any:
    """What reaches an operation without a handler does not move."""
    for value in tree_leaves((args, kwargs)):
        if isinstance(value, Value):
            step.bar(value)
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
        return _each(execute(value.labels), lambda labels: Value(labels.shape, labels))
    if value.parameter:
        pieces = [execute(c) for c in value.coordinates]
        if pieces and isinstance(pieces[0], Tensor):
            return Value(pieces[0].shape, parameter=value.parameter, coordinates=tuple(pieces))
        return [Value(p[0].shape, parameter=value.parameter, coordinates=p) for p in zip(*pieces, strict=True)]
    if value.constant is not None:
        return _each(execute(value.constant), lambda constant: Value(constant.shape, constant=constant))
    outputs = step.node.meta.get("val")
    return _each(outputs, lambda t: Value(t.shape)) if outputs is not None else step.fixed()


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


def _stand_in(value: Value) -> Tensor:
    return torch.empty(value.shape) if value.constant is None else value.constant


def _each(outputs: Any, make: Callable[[Tensor], Value]) -> Any:
    return make(outputs) if isinstance(outputs, Tensor) else [make(o) for o in outputs]


def _in_place(node: Node) -> bool:
    name = str(getattr(getattr(node.target, "_overloadpacket", node.target), "__name__", ""))
    return name.endswith("_") and not name.endswith("__")


def _shape(node: Node) -> torch.Size:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else torch.Size()
