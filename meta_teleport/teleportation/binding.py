"""A user's model, loss and batch as a pure function of the parameters."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.teleportation.objectives import Loss

ModelLoss = Callable[[nn.Module, Any], Tensor]


class _Bound(nn.Module):
    """The loss of a model as the forward pass of a module, so that ``functional_call`` reaches the model."""

    def __init__(self, model: nn.Module, loss: ModelLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)


def bind(model: nn.Module, loss: ModelLoss, batch: Any) -> Loss:
    """``loss(model, batch)`` as a pure function of parameters ``(tasks, *shape)``, giving losses ``(tasks,)``.

    Parameters that are not passed are the model's own. Nothing of the model changes: its buffers (running means,
    counters) are given as copies, its mode (train or eval) stays as it is. Every evaluation runs under the autocast of
    the caller of ``bind``, sees the same random numbers (dropout), those that the next call of the model would have
    drawn, and leaves the generators as they were. Attention runs by plain matrix products, which can be differentiated
    twice.

    The function raises ``UserError`` where the loss is not one number, or does not depend on the parameters.
    """
    if torch.is_inference_mode_enabled():
        raise UserError("a loss is differentiated here: leave torch.inference_mode() first (torch.no_grad() may stay)")
    bound, randomness, precision = _Bound(model, loss), Randomness(model), _Precision(model)

    def evaluate(params: Params) -> Tensor:
        tasks = zip(*(p.unbind() for p in params.values()), strict=True)
        return torch.stack([single(dict(zip(params, tensors, strict=True))) for tensors in tasks])

    def single(params: Params) -> Tensor:
        tensors = {f"model.{name}": p for name, p in params.items()}
        tensors |= {f"model.{name}": buffer.clone() for name, buffer in model.named_buffers()}
        with randomness.replayed(), precision.restored(), sdpa_kernel(SDPBackend.MATH):
            value = functional_call(bound, tensors, (batch,))
        return _checked(value, params)

    return evaluate


def _checked(value: Any, params: Params) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"loss(model, batch) gave {shown}, not one number: reduce it, for instance by .mean()")
    wanted = torch.is_grad_enabled() and any(p.requires_grad for p in params.values())
    if wanted and not value.requires_grad:
        raise UserError(
            "the loss does not depend on the model's trainable parameters: compute it from the model that loss(model, "
            "batch) is given, without .detach(), .item() or torch.no_grad()"
        )
    return value.reshape(())


class Randomness:
    """The states of the global random generators that a model draws from, to be played again."""

    def __init__(self, model: nn.Module) -> None:
        self.cpu = torch.get_rng_state()
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        self.cuda = {device.index: torch.cuda.get_rng_state(device) for device in devices}

    @contextmanager
    def replayed(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=list(self.cuda)):
            torch.set_rng_state(self.cpu)
            for index, state in self.cuda.items():
                torch.cuda.set_rng_state(state, index)
            yield


class _Precision:
    """The autocast that the caller is under, to be used again."""

    def __init__(self, model: nn.Module) -> None:
        self.kind = next(model.parameters()).device.type
        self.enabled = torch.is_autocast_enabled(self.kind)
        self.dtype = torch.get_autocast_dtype(self.kind)

    def restored(self) -> torch.autocast:
        return torch.autocast(self.kind, dtype=self.dtype, enabled=self.enabled)
