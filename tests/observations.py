"""What a rule sees of tasks at given parameters."""

import torch

from meta_teleport.params import Params
from meta_teleport.rules.rule import Observation
from meta_teleport.tasks.family import Tasks


def observe(tasks: Tasks, params: Params, step: int = 0) -> Observation:
    """Losses, gradients and Gram matrices of activations at ``params``."""
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    at = torch.full((tasks.count,), step)
    loss = tasks.loss(leaves, at)
    gradients = dict(zip(leaves, torch.autograd.grad(loss.sum(), list(leaves.values())), strict=True))
    grams = tasks.symmetry.grams(params, tasks.inputs(at))
    return Observation(params, gradients, loss.detach(), at, (), grams, tasks.symmetry)
