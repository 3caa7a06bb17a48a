"""Walking the graph of a model: each tensor is replaced by labels that say which unit every entry is."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from meta_teleport.detection.trace import Trace, place
from meta_teleport.detection.units import KINDS, Units, differ
from meta_teleport.detection.values import HANDLERS, SHAPES_ONLY, Step, Value, unknown

WRAPPERS = ("wrap_with", "tag_activation_checkpoint", "wrap_activation_checkpoint")


class Walk:
    """One pass over the graph of a model. ``frozen`` says which parameters must not move, and why."""

    def __init__(self, traced: Trace, frozen: Mapping[str, str]) -> None:
        self.units, self.trace, self.frozen = Units(), traced, frozen

    def run(self) -> Units:
        """The units of the model with all marks on them. What parameters that must not move see or make, and
        what the model returns, may not move."""
        outputs = self._walk(self.trace.graph, None)
        self.units.resolve()
        for value in tree_leaves(outputs):
            if isinstance(value, Value) and value.labels is not None:
                self.units.forbid_labels(value.labels, KINDS, "are outputs of the model")
        for use in self.units.uses:
            for labels in (use.left, use.right) if use.parameter in self.frozen else ():
                if labels is not None:
                    reason = f"depend on '{use.parameter}', which {self.frozen[use.parameter]}"
                    self.units.forbid_labels(labels, KINDS, reason)
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
                    self._write(node, node.args[0], known, outside=inputs is not None)
        raise AssertionError("a graph without an output")

    def _write(self, node: Node, target: Node, known: dict[Node, Any], outside: bool) -> None:
        """``target`` is now what ``node`` has written there. Where that is made of other units, the tensors that share
        its memory hold a mixture that nobody keeps account of (so may those ``outside`` of this graph)."""
        before, after = known[target], known[node]
        known[target] = after
        if before.labels is not None and after.labels is not None and not differ(before.labels, after.labels):
            return
        shared = [other for other in known if other not in (node, target) and _memory(other) == _memory(target)]
        for value in (before, after, *(known[other] for other in shared)):
            if (shared or outside) and value.labels is not None:
                self.units.forbid_labels(value.labels, KINDS, f"are written over in {place(node)}")

    def _placeholder(self, node: Node) -> Value:
        shape = _shape(node)
        name, buffer = self.trace.parameters.get(node.name), self.trace.buffers.get(node.name)
        axes = [torch.arange(n) for n in shape]
        grid = (axis.reshape([-1 if i == j else 1 for j in range(len(shape))]) for i, axis in enumerate(axes))
        if name is not None:
            return Value(shape, parameter=name, coordinates=tuple(axis.expand(shape) for axis in grid))
        if buffer is not None and node.meta["val"].is_floating_point():
            return Value(shape, buffer=buffer, coordinates=tuple(axis.expand(shape) for axis in grid))
        return Value(shape, constant=self.trace.constants.get(node.name))

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
            return unknown(step, args, kwargs)
        noted = len(self.units.uses)
        result = handler(step, *args, **kwargs)
        if step.operation not in SHAPES_ONLY.split():
            self._account(step, (args, kwargs), result, noted)
        return result

    def _account(self, step: Step, given: Any, result: Any, noted: int) -> None:
        """A tensor of the model that a handler has neither noted nor passed on is used in a way nobody thought of."""
        known = {use.parameter for use in self.units.uses[noted:]}
        known |= {value.name for value in tree_leaves(result) if isinstance(value, Value)}
        for weight in [self.units.normalized[name] for name in known if name in self.units.normalized]:
            known |= {weight.parameter, weight.gain}
        step.refuse(*(v for v in tree_leaves(given) if isinstance(v, Value) and v.name not in known))


def _operation(node: Node) -> str:
    return str(getattr(getattr(node.target, "_overloadpacket", node.target), "__name__", node.target))


def _in_place(node: Node) -> bool:
    name = _operation(node)
    return name.endswith("_") and not name.endswith("__")


def _memory(node: Node) -> Any:
    """Which memory a tensor of the graph lies in: the same for all views of it."""
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else node


def _shape(node: Node) -> torch.Size:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else torch.Size()
