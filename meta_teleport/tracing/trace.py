"""A model as a graph of tensor operations, by ``torch.export``.

Exporting opens every module, whoever wrote it, into a torch.fx graph of some dozens of kinds of operations on tensors
of known shapes: what a symmetry is read from. Nothing is executed on real numbers and the model is left as it is.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from meta_teleport.errors import UserError
from meta_teleport.tracing.leaves import closed
from meta_teleport.tracing.outputs import Calls, Outputs
from meta_teleport.tracing.settings import Setting, prepared, run

MESSAGE = 300
LIFTED = "lifted_tensor_"
GO_ON = (
    "leave the module that makes this call closed (leaves=['its.name']), or name the sites by hand (Symmetry.manual)"
)
Examples = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Trace:
    """The graph of a model, which parameter or persistent buffer each of its placeholders is, and the constants it was
    given.

    The first tensors that the graph returns, as many as ``outputs``, are what the model returns; for each of the
    ``scopes``, which are names of modules, one follows that is at hand in that module.
    """

    graph: Graph
    parameters: dict[str, str]
    constants: dict[str, Tensor]
    outputs: int
    scopes: tuple[str, ...]
    buffers: dict[str, str] = field(default_factory=dict)


def arguments(example_inputs: Examples) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments: a tensor, a sequence of arguments, or a mapping by name."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        return tuple(example_inputs), {}
    raise UserError(
        f"example inputs are a {type(example_inputs).__name__}: give a tensor, a tuple of arguments, or a dict of "
        "keyword arguments"
    )


def given(model: nn.Module, example_inputs: Examples) -> Setting:
    """The mode the model is in, and the inputs as they are. Raises ``UserError`` if they are no inputs."""
    args, kwargs = arguments(example_inputs)
    if any(isinstance(t, Tensor) and t.numel() == 0 for t in tree_leaves((args, kwargs))):
        raise UserError("an example input has no entries: give a batch of at least one example")
    return Setting(model.training, args, kwargs)


def trace(model: nn.Module, setting: Setting, leaves: Sequence[str] = (), scoped: bool = False) -> Trace:
    """The graph of ``model`` in a setting; with ``scoped``, what its modules are called with and return is known.

    The modules named in ``leaves`` are not looked into.

    Raises ``UserError`` if the inputs do not run, or if the model cannot be traced; the last names the call and how to
    go on.
    """
    names = dict(model.named_modules())
    leaves = (leaves,) if isinstance(leaves, str) else leaves
    for leaf in leaves:
        if leaf not in names or not leaf:
            raise UserError(f"no module '{leaf}' to leave closed: choose from model.named_modules()")
    calls = Calls(model) if scoped else None
    try:
        with (
            closed(model, [names[leaf] for leaf in leaves], setting) if leaves else nullcontext(),
            prepared(model, setting) as (args, kwargs),
            _exporting(),
        ):
            program = torch.export.export(Outputs(model, calls), (args, kwargs), strict=False)
    except UserError:
        raise
    except Exception as error:
        _explain(model, setting, error)
    _require_sizes(program.graph)
    signature = program.graph_signature
    first = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    every: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    every |= dict(model.named_buffers(remove_duplicate=False))
    parameters, buffers = (
        {place: first[id(every[name.removeprefix("model.")])] for place, name in inputs.items() if name not in passing}
        for inputs, passing in (
            (signature.inputs_to_parameters, ()),
            (signature.inputs_to_buffers, signature.non_persistent_buffers),
        )
    )
    state = {**program.state_dict, **program.constants}
    constants = {  # of literals: an attribute may have other numbers later
        place: state[name]
        for place, name in signature.inputs_to_lifted_tensor_constants.items()
        if name.rpartition(".")[2].startswith(LIFTED) and isinstance(state[name], Tensor)
    }
    written = set(signature.buffers_to_mutate.values())
    for place, name in signature.inputs_to_buffers.items():  # zeros that are no weights: the key bias that there is not
        if name in signature.non_persistent_buffers and name not in written and not state[name].any():
            constants[place] = state[name]
    scopes = tuple(calls.scopes) if calls else ()
    outputs = len(signature.user_outputs) - len(scopes)
    return Trace(program.graph, parameters, constants, outputs, scopes, buffers)


def place(node: Node) -> str:
    """Where in the model an operation stands: the innermost module with its class, and the operation."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    target = getattr(node.target, "_overloadpacket", node.target)
    operation = str(getattr(target, "__name__", target)).strip("_")
    if len(stack) < 2:
        return operation
    return f"{operation} in '{scope(node) or 'model'}' ({str(stack[-1][1]).rpartition('.')[2]})"


def scope(node: Node) -> str:
    """The name of the innermost module in whose code an operation stands."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return re.sub(r"@\d+", "", stack[-1][0]).removeprefix("model").lstrip(".") if stack else ""


@contextmanager
def _exporting() -> Iterator[None]:
    """Composite operations stay visible: no fused attention path, gradients on, and the exporter is quiet."""
    fast = torch.backends.mha.get_fastpath_enabled()
    disabled = logging.root.manager.disable
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.CRITICAL)
    try:
        quiet = io.StringIO()
        with torch.enable_grad(), warnings.catch_warnings(), redirect_stdout(quiet), redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fast)


def _require_sizes(graph: Graph) -> None:
    """Raises ``UserError`` if the size of a tensor depends on the numbers in the inputs."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not all(type(n) is int for n in value.shape):
            raise UserError(
                f"the model cannot be traced: the size of what {place(node)} returns depends on the numbers in the "
                f"inputs; {GO_ON}"
            )


def _explain(model: nn.Module, setting: Setting, error: Exception) -> NoReturn:
    """Raises ``UserError``: do the inputs not run, or is it the tracing?"""
    try:
        run(model, setting)
    except Exception as failure:
        raise UserError(f"the model does not run on the example inputs: {shortened(failure)}") from None
    raise UserError(f"the model cannot be traced: {_call(error) or shortened(error)}; {GO_ON}") from error


def _call(error: Exception) -> str:
    """The line of the model's code that an error of the exporter names, if it does."""
    quoted = re.findall(r'File "[^"]*?([^/"]+)", line (\d+), in (\w+)\s+(.+)', str(error))
    if quoted:
        return "{}:{} in {}: {}".format(*quoted[-1]).strip()
    short = re.search(r"Caused by: \([^)]*?([^/)]+):(\d+) in (\w+)\)", str(error))
    return "{}:{} in {} depends on the numbers in a tensor".format(*short.groups()) if short else ""


def shortened(message: object) -> str:
    """The message of an error on one line."""
    return " ".join(str(message).partition("The error above")[0].split())[:MESSAGE]
