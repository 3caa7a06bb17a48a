"""What a model must be like for its parameters to be moved."""

from typing import Any

import torch
from torch import nn

from meta_teleport.errors import UserError

SHARDED = "is sharded over processes: gather the model, or teleport before sharding"
HALF = (torch.float16, torch.bfloat16)
WHOLE = (torch.float32, torch.float64)


def require_movable(model: nn.Module) -> None:
    """Refuses a model whose parameters cannot be moved, before anything happens to it.

    Raises ``UserError`` with the cause and the remedy for what is no model, for one that is compiled or wrapped for
    many processes, in whole or in part, for one without trainable parameters, and for parameters that have no numbers
    yet (meta device, lazy modules), are spread over processes, quantised, or trainable and of half precision. Complex
    parameters, integers and truth values stay where they are.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is {described(model)}: give an instance of torch.nn.Module")
    for name, module in model.named_modules():
        _require_plain(f"module '{name}'" if name else "the model", f"model.{name}" if name else "model", module)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if nn.parameter.is_lazy(parameter) or parameter.is_meta:
            raise UserError(f"parameter '{name}' has no numbers yet (meta device): initialize the model first")
        if hasattr(parameter, "placements") or hasattr(parameter, "_local_shards"):
            raise UserError(f"parameter '{name}' {SHARDED}")
        if parameter.dtype in HALF and parameter.requires_grad:
            raise UserError(
                f"parameter '{name}' is {str(parameter.dtype).removeprefix('torch.')}: keep the parameters in float32 "
                "(model.float()) and use torch.autocast for speed"
            )
    if any(tensor.is_quantized for tensor in model.state_dict().values() if isinstance(tensor, torch.Tensor)) or any(
        "quantized" in type(module).__module__ for module in model.modules()
    ):
        raise UserError("the model is quantised: teleport the float model, then quantise it")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError("the model has no trainable parameters: set requires_grad on those that may move")
    if not any(parameter.requires_grad and is_movable(parameter) for parameter in parameters.values()):
        raise UserError("the model has no trainable parameters in float32 or float64, and only these can move")


def is_movable(parameter: torch.Tensor) -> bool:
    """Whether numbers of this kind can move: not complex ones, integers, or truth values."""
    return parameter.dtype in (*WHOLE, *HALF)


def described(value: Any) -> str:
    """What stands in the place of something else, in few words."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _require_plain(what: str, path: str, module: nn.Module) -> None:
    """Refuses a module that stands for another one: its parameters have other names, or its calls run other code."""
    if "_orig_mod" in module._modules:
        remedy = "pass" if path == "model" else "put back"
        raise UserError(f"{what} is compiled: {remedy} the module that was given to torch.compile ({path}._orig_mod)")
    if getattr(module, "_compiled_call_impl", None) is not None:
        raise UserError(
            f"{what} is compiled in place: teleport before calling compile(), or undo it "
            f"({path}._compiled_call_impl = None)"
        )
    wrappers = {cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("torch.")}
    if "DistributedDataParallel" in wrappers:
        remedy = "pass the module that was given to it" if path == "model" else "put back the module that it wraps"
        raise UserError(f"{what} is wrapped in DistributedDataParallel: {remedy} ({path}.module)")
    if "FullyShardedDataParallel" in wrappers:
        raise UserError(f"{what} {SHARDED}")
