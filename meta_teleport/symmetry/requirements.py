"""What a model must be like for its parameters to be moved."""

import torch
from torch import nn

from meta_teleport.errors import UserError

HALF = (torch.float16, torch.bfloat16)
WHOLE = (torch.float32, torch.float64)


def require_movable(model: nn.Module) -> None:
    """Refuses a model whose parameters cannot be moved, before anything happens to it.

    Raises ``UserError`` with the cause and the remedy for a compiled model, for one without trainable parameters, and
    for parameters that have no numbers yet (meta device, lazy modules), are spread over processes, quantised, or of
    half precision.
    """
    if hasattr(model, "_orig_mod"):
        raise UserError("the model is compiled: pass the module that was given to torch.compile (model._orig_mod)")
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if nn.parameter.is_lazy(parameter) or parameter.is_meta:
            raise UserError(f"parameter '{name}' has no numbers yet (meta device): initialize the model first")
        if hasattr(parameter, "placements") or hasattr(parameter, "_local_shards"):
            raise UserError(
                f"parameter '{name}' is sharded over processes: gather the model, or teleport before sharding"
            )
        if parameter.dtype in HALF:
            raise UserError(
                f"parameter '{name}' is {str(parameter.dtype).removeprefix('torch.')}: keep the parameters in float32 "
                "(model.float()) and use torch.autocast for speed"
            )
        if parameter.dtype not in WHOLE:
            raise UserError(f"parameter '{name}' is {parameter.dtype}: quantised models cannot move, use the float one")
    if any(tensor.is_quantized for tensor in model.state_dict().values() if isinstance(tensor, torch.Tensor)) or any(
        "quantized" in type(module).__module__ for module in model.modules()
    ):
        raise UserError("the model is quantised: teleport the float model, then quantise it")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError("the model has no trainable parameters: set requires_grad on those that may move")
