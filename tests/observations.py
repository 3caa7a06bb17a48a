"""What a rule sees of tasks at given parameters."""

from functools import partial

import torch

from meta_teleport.params import Params, value_and_grad
from meta_teleport.rules.rule import Observation
from meta_teleport.tasks.family import Tasks


def observe(tasks: Tasks, params: Params, step: int = 0) -> Observation:
    """Losses, gradients and Gram matrices of activations at ``params``."""
    at = torch.full((tasks.count,), step)
    loss, gradients = value_and_grad(partial(tasks.loss, step=at), params)
    grams = tasks.symmetry.grams(params, tasks.inputs(at))
    return Observation(params, gradients, loss, at, (), grams, tasks.symmetry)
