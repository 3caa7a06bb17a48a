"""Modules that a trace does not look into: each of their calls is one opaque operation."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from meta_teleport.tracing.settings import Setting, run

_OUTPUTS: dict[int, list[Tensor]] = {}


@torch.library.custom_op("meta_teleport::leaf", mutates_args=(), schema="(Tensor[] inputs, int key) -> Tensor[]")
def _leaf(inputs: list[Tensor], key: int) -> list[Tensor]:
    raise NotImplementedError("a leaf exists only while a model is traced")


@_leaf.register_fake
def _(inputs: list[Tensor], key: int) -> list[Tensor]:
    return [inputs[0].new_empty(t.shape, dtype=t.dtype) for t in _OUTPUTS[key]]


@contextmanager
def closed(model: nn.Module, leaves: Sequence[nn.Module], setting: Setting) -> Iterator[None]:
    """Inside, every call of one of ``leaves`` is one operation. What they return is learned from one real run of
    ``model`` in the setting."""
    returned: dict[int, tuple[list[Any], TreeSpec]] = {}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        returned[id(module)] = tree_flatten(output)

    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        run(model, setting)
    finally:
        for hook in hooks:
            hook.remove()
    with ExitStack() as stack:
        for leaf in leaves:
            if id(leaf) in returned:
                outputs, spec = returned[id(leaf)]
                tensors = [output for output in outputs if isinstance(output, Tensor)]
                stack.enter_context(patch.dict(_OUTPUTS, {id(leaf): tensors}))
                stack.enter_context(patch.object(leaf, "forward", _opaque(id(leaf), outputs, spec)))
        yield


def _opaque(key: int, outputs: list[Any], spec: TreeSpec) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        made = iter(_leaf([t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)], key))
        return tree_unflatten([next(made) if isinstance(output, Tensor) else output for output in outputs], spec)

    return forward
