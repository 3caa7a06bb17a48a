"""The loss of a closure at parameters that are only tried."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from meta_teleport.params import Params
from meta_teleport.teleportation.ranks import Ranks, mean


class ClosureLoss:
    """``closure()`` evaluated at other values of the named ``parameters`` of the model.

    Afterwards parameters, gradients, buffers and the global random generators are bitwise what they were; every
    evaluation sees the same random numbers (dropout). It is the mean over all ``ranks``.
    """

    def __init__(
        self, model: nn.Module, closure: Callable[[], Any], parameters: dict[str, nn.Parameter], ranks: Ranks
    ) -> None:
        self.model, self.closure, self.parameters, self.ranks = model, closure, parameters, ranks

    @torch.no_grad()
    def __call__(self, params: Params) -> Tensor:
        """The loss ``(1,)`` at ``params``, each ``(1, *shape)``."""
        everything = list(self.model.parameters())
        saved = [(p, p.clone()) for p in [*everything, *self.model.buffers()]]
        gradients = [p.grad for p in everything]
        devices = {p.device.index for p in everything if p.device.type == "cuda"}
        try:
            for p in everything:
                p.grad = None
            for name, p in self.parameters.items():
                p.copy_(params[name][0])
            with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
                found = self.closure()
            value = torch.as_tensor(found).detach().to(next(iter(params.values()))).reshape(1)
            return mean(value, self.ranks.group)
        finally:
            for tensor, value in saved:
                tensor.copy_(value)
            for p, gradient in zip(everything, gradients, strict=True):
                p.grad = gradient
