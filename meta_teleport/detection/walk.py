"""Walking the graph of a model: each tensor is replaced by labels that say which unit every entry is."""

import operator
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from meta_teleport.operations.experts import forbid_routed, pass_on
from meta_teleport.operations.labels import differ, distinct
from meta_teleport.operations.units import KINDS, Units
from meta_teleport.operations.values import HANDLERS, SHAPES_ONLY, Step, Value, unknown
from meta_teleport.tracing.trace import Trace, place, scope

WRAPPERS = ("wrap_with", "tag_activation_checkpoint", "wrap_activation_checkpoint")


class Walk:
    """One pass over a graph of a model, whose marks are left on ``units``. ``at_hand`` are the units of the tensors
    that the code of each module has at hand, where the trace says so."""

    def __init__(self, traced: Trace, units: Units) -> None:
        self.units, self.trace = units, traced
        self.written = {_memory(node.args[0]) for node in traced.graph.nodes if _writes(node)}
        self.at_hand: dict[str, set[int]] = defaultdict(set)

    def run(self) -> None:
        """Marks the units of this graph. What the model returns may not move."""
        outputs = tree_leaves(self._walk(self.trace.graph, None))
        for value in outputs[: self.trace.outputs]:
            forbid_routed(self.units, value, "the outputs of the model")
            if isinstance(value, Value) and value.labels is not None:
                self.units.forbid_labels(value.labels, KINDS, "are outputs of the model")
            elif isinstance(value, Value) and value.parameter:
                self.units.use(value.parameter, value.coordinates, None, None, "the outputs of the model")
        self.units.resolve()
        for name, value in zip(self.trace.scopes, outputs[self.trace.outputs :], strict=True):
            self._note(name, value)

    def _note(self, name: str, value: Any) -> None:
        if isinstance(value, Value) and value.labels is not None:
            self.at_hand[name].update(unit for (unit,) in distinct(value.labels))

    def _walk(self, graph: torch.fx.Graph, inputs: list[Any] | None) -> Any:
        known: dict[Node, Any] = {}
        sharing: dict[Any, list[Node]] = defaultdict(list)
        given = iter(inputs or ())
        for node in graph.nodes:
            if node.op == "placeholder":
                known[node] = self._placeholder(node) if inputs is None else next(given)
                sharing[_memory(node)].append(node)
            elif node.op == "get_attr":
                known[node] = getattr(graph.owning_module, str(node.target), None)
            elif node.op == "output":
                return torch.fx.node.map_arg(node.args[0], known.__getitem__)
            else:
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = self._call(node, args, kwargs)
                for value in tree_leaves(known[node]) if self.trace.scopes else ():
                    self._note(scope(node), value)
                if _writes(node):
                    self._write(node, node.args[0], known, sharing[_memory(node.args[0])], outside=inputs is not None)
                sharing[_memory(node)].append(node)
        raise AssertionError("a graph without an output")

    def _write(self, node: Node, target: Node, known: dict[Node, Any], sharing: list[Node], outside: bool) -> None:
        """``target`` is now what ``node`` has written there. Where that is made of other units, the tensors ``sharing``
        its memory hold a mixture that nobody keeps account of (so may those ``outside`` of this graph)."""
        before, after = known[target], known[node]
        known[target] = after
        shared = [other for other in sharing if other not in (node, target)]
        known.update({other: replace(known[other], constant=None) for other in shared})
        for value in (before, *((after, *(known[other] for other in shared)) if shared or outside else ())):
            forbid_routed(self.units, value, place(node))
        if before.labels is not None and after.labels is not None and not differ(before.labels, after.labels):
            return
        for value in (before, after, *(known[other] for other in shared)):
            if (shared or outside) and value.labels is not None:
                self.units.forbid_labels(value.labels, KINDS, f"are written over in {place(node)}")
        for other in shared:
            if not known[other].parameter:
                known[other] = Value(known[other].shape)

    def _placeholder(self, node: Node) -> Value:
        shape = _shape(node)
        name, buffer = self.trace.parameters.get(node.name), self.trace.buffers.get(node.name)
        axes = [torch.arange(n) for n in shape]
        grid = (axis.reshape([-1 if i == j else 1 for j in range(len(shape))]) for i, axis in enumerate(axes))
        if name is not None:
            return Value(shape, parameter=name, coordinates=tuple(axis.expand(shape) for axis in grid))
        if buffer is not None and node.meta["val"].is_floating_point():
            return Value(shape, buffer=buffer, coordinates=tuple(axis.expand(shape) for axis in grid))
        changes = _memory(node) in self.written
        return Value(shape, constant=None if changes else self.trace.constants.get(node.name))

    def _call(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.target is operator.getitem:
            return args[0][args[1]]
        operation = _operation(node)
        bodies = [i for i, a in enumerate(args) if isinstance(a, GraphModule)]
        if operation.startswith(WRAPPERS) and len(bodies) == 1:
            return self._walk(args[bodies[0]].graph, list(args[bodies[0] + 1 :]))
        step = Step(self.units, node, operation.strip("_"), place(node), _shape(node))
        handler = HANDLERS.get(step.operation)
        if handler is None:
            result = unknown(step, args, kwargs)
        else:
            noted = len(self.units.uses)
            result = handler(step, *args, **kwargs)
            if step.operation not in SHAPES_ONLY.split():
                self._account(step, (args, kwargs), result, noted)
        chosen = any(isinstance(value, Value) and value.routed for value in tree_leaves((args, kwargs)))
        return pass_on(step, args, kwargs, result) if chosen else result

    def _account(self, step: Step, given: Any, result: Any, noted: int) -> None:
        """A tensor of the model that a handler has neither noted nor passed on is used in a way nobody thought of."""
        known = {use.parameter for use in self.units.uses[noted:]}
        known |= {value.name for value in tree_leaves(result) if isinstance(value, Value)}
        known = known.union(*map(self.units.behind, known))
        step.refuse(*(v for v in tree_leaves(given) if isinstance(v, Value) and v.name not in known))


def _operation(node: Node) -> str:
    return str(getattr(getattr(node.target, "_overloadpacket", node.target), "__name__", node.target))


def _writes(node: Node) -> bool:
    """Whether an operation writes into its first argument."""
    name = _operation(node)
    return name.endswith("_") and not name.endswith("__") and isinstance(next(iter(node.args), None), Node)


def _memory(node: Node) -> Any:
    """Which memory a tensor of the graph lies in: the same for all views of it."""
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else node


def _shape(node: Node) -> torch.Size:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else torch.Size()
