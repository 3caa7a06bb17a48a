"""Parameters as data: ``dict[str, Tensor]`` with leading task dimensions, and the algebra on them.

Every tensor of a ``Params`` has shape ``(tasks, *shape)``: the same network for many tasks side by side. Nothing
in this package below the optimizer wrappers mutates such a tensor.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import overload

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from meta_teleport.errors import UserError

Params = dict[str, Tensor]
Writes = list[tuple[Tensor, Tensor]]
"""What is to be written where: pairs of a tensor and its new value."""


def functional(model: nn.Module) -> Callable[[Params, Tensor], Tensor]:
    """The model as a pure function of batched parameters.

    Returns ``f(params, inputs)`` with params ``(tasks, *shape)`` and inputs ``(tasks, n, ...)``, giving outputs
    ``(tasks, n, ...)``; the model's own parameters are never read. A model whose forward pass broadcasts over a
    leading task dimension says so by an attribute ``broadcasts``; others are mapped over the tasks.
    """

    def single(params: Params, inputs: Tensor) -> Tensor:
        return functional_call(model, params, (inputs,))

    if getattr(model, "broadcasts", False):
        return single

    def mapped(params: Params, inputs: Tensor) -> Tensor:
        def alone() -> Tensor:
            return single({name: p[0].detach() for name, p in params.items()}, inputs[0].detach())

        return run_side_by_side(model, lambda: vmap(single, randomness="different")(params, inputs), alone)

    return mapped


def run_side_by_side(model: nn.Module, run: Callable[[], Tensor], alone: Callable[[], Tensor]) -> Tensor:
    """What ``run`` gives, the model for many parameters at once under vmap.

    Where that fails ``alone`` runs it for one of them, so that what is wrong with model or inputs is raised as it is.
    Raises ``UserError`` naming what vmap does not allow if nothing is.
    """
    try:
        return run()
    except RuntimeError as error:
        with torch.no_grad():
            alone()
        what = _obstacle(model) or str(error).splitlines()[0]
        raise UserError(
            f"{type(model).__name__} cannot run for many parameters at once, as vmap does not allow it: {what}; train "
            "such networks in separate runs"
        ) from None


def _obstacle(model: nn.Module) -> str:
    """What in the model is known not to run under vmap, with a remedy where there is one; empty if nothing is."""
    for name, module in model.named_modules():
        hooks = (type(hook).__name__ for hook in module._forward_pre_hooks.values())
        if isinstance(module, nn.RNNBase):
            return f"'{name}' is a recurrent layer ({type(module).__name__})"
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.momentum is None:
            return f"'{name}' averages over all batches (momentum=None; give it a momentum)"
        if "SpectralNorm" in (*hooks, type(module).__name__.lstrip("_")):
            return f"'{name}' is under spectral_norm, which writes to its vectors at every run"
    return ""


def axpy(a: float | Tensor, x: Params, y: Params) -> Params:
    """``a x + y``, tensor by tensor; ``a`` is a number or one number per task, shape ``(tasks,)``."""
    return {name: y[name] + per_task(a, x[name]) * x[name] for name in y}


def lerp(x: Params, y: Params, weight: float) -> Params:
    """``(1 - weight) x + weight y``, tensor by tensor, in the order of ``y``."""
    return dict(zip(y, torch._foreach_lerp([x[name] for name in y], list(y.values()), weight), strict=True))


@overload
def per_task(a: Tensor, like: Tensor) -> Tensor: ...


@overload
def per_task(a: float | Tensor, like: Tensor) -> float | Tensor: ...


def per_task(a: float | Tensor, like: Tensor) -> float | Tensor:
    """``a`` of shape ``(tasks,)`` viewed so that it broadcasts against ``like`` of shape ``(tasks, ...)``."""
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim)) if isinstance(a, Tensor) and a.ndim else a


def dot(x: Params, y: Params) -> Tensor:
    """The inner product of two parameter sets, one number per task, shape ``(tasks,)``."""
    return torch.stack([rows(x[name] * y[name]).sum(1) for name in x]).sum(0)


def norm(x: Params) -> Tensor:
    """The Euclidean norm over all parameters, shape ``(tasks,)``. Not differentiable at zero."""
    return norms(x).norm(dim=1)


def norms(x: Params) -> Tensor:
    """The Euclidean norm of each parameter, shape ``(tasks, parameters)``."""
    tensors = list(x.values())
    if len(tensors[0]) == 1:
        return torch.stack(torch._foreach_norm(tensors)).unsqueeze(0)
    return torch.stack([rows(tensor).norm(dim=1) for tensor in tensors], 1)


def flatten(params: Params) -> Tensor:
    """All parameters of each task as one row, in the order of the dict: shape ``(tasks, size)``."""
    return torch.cat([rows(tensor) for tensor in params.values()], dim=1)


def rows(tensor: Tensor) -> Tensor:
    """One parameter ``(tasks, *shape)`` as ``(tasks, size)``; size 1 where it is one number per task."""
    return tensor.reshape(tensor.shape[0], prod(tensor.shape[1:]))


def unflatten(flat: Tensor, like: Params) -> Params:
    """The inverse of :func:`flatten`: ``flat`` ``(tasks, size)`` in the names and shapes of ``like``."""
    sizes = [prod(tensor.shape[1:]) for tensor in like.values()]
    pieces = flat.split(sizes, dim=1)
    return {
        name: piece.reshape(flat.shape[:1] + tensor.shape[1:])
        for (name, tensor), piece in zip(like.items(), pieces, strict=True)
    }


def where(mask: Tensor, yes: Params, no: Params) -> Params:
    """``yes`` for the tasks where ``mask`` ``(tasks,)`` holds, ``no`` for the others."""
    return {name: torch.where(per_task(mask, no[name]), yes[name], no[name]) for name in no}


def detach(params: Params) -> Params:
    """The same numbers, cut from the graph that made them."""
    return {name: tensor.detach() for name, tensor in params.items()}


def leaves(params: Params) -> Params:
    """The same numbers, cut from the graph that made them, as tensors to differentiate by."""
    return {name: tensor.detach().requires_grad_() for name, tensor in params.items()}


def value_and_grad(
    loss: Callable[[Params], Tensor], params: Params, create_graph: bool = False
) -> tuple[Tensor, Params]:
    """The values of ``loss`` at ``params``, one per task, and the gradient of their sum, which is each task's own.

    Zeros for parameters that the loss does not depend on. Both are constants, or, with ``create_graph``, part of the
    graph that ``params`` belong to.

    Raises ``UserError`` if the loss depends on no parameter.
    """
    point = aliases(params) if create_graph else leaves(params)
    with torch.enable_grad():
        values = loss(point)
        found: Sequence[Tensor | None] = ()
        if values.requires_grad:
            inner = list(point.values())
            found = torch.autograd.grad(values.sum(), inner, create_graph=create_graph, allow_unused=True)
    if all(g is None for g in found):
        raise UserError("the loss depends on no parameter: compute it from those it is given, without detach()")
    gradients = {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(params.items(), found, strict=True)
    }
    return values if create_graph else values.detach(), gradients


def aliases(params: Params) -> Params:
    """The same numbers as nodes of their own in the graph.

    A derivative by one of them stops there. Without this, where one parameter was computed from another (a
    teleport recomputes what the layers above it see), the derivative by the latter would run through the former.
    """
    return {name: tensor.view_as(tensor) for name, tensor in params.items()}


@torch.no_grad()
def write_at_once(writes: Writes) -> None:
    """Writes every value into its tensor, all of them or none.

    What can fail, memory for other precisions included, comes first; the copies are one call, which nothing that Python
    could raise comes between.
    """
    if writes:
        values = [value.to(tensor) for tensor, value in writes]
        torch._foreach_copy_([tensor for tensor, _ in writes], values)
