"""What a teleport raises or lowers: functions of the parameters, one number per task."""

from collections.abc import Callable

import torch
from torch import Tensor

from meta_teleport.params import Params, aliases, rows

Loss = Callable[[Params], Tensor]
Objective = Callable[[Loss, Params], Tensor]


def gradient_norm(loss: Loss, params: Params) -> Tensor:
    """The squared gradient norm ``||grad L(w)||^2``, shape ``(tasks,)``, differentiable with respect to ``params``.

    The initial rate of decrease of the loss under gradient flow, which the paper's teleports maximise (Zhao et al.
    2024, section 3). ``loss`` maps params to ``(tasks,)``; params must require gradients or depend on what does.
    """
    point = aliases(params)
    gradients = torch.autograd.grad(loss(point).sum(), list(point.values()), create_graph=True)
    return torch.stack([rows(g.square()).sum(1) for g in gradients]).sum(0)
