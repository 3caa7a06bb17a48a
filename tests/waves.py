"""Numbers that look random and come from a formula: the same with every version of torch and on every processor."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from meta_teleport.params import Params

Model = TypeVar("Model", bound=nn.Module)


def wave(*shape: int, seed: int = 0) -> Tensor:
    """``sqrt(2) sin(k^2 + sqrt(2) k (seed + 1) + seed)`` for k = 1, 2, ...: mean 0, variance 1, up to 1 / root of the
    count; float64. Matrices of these have full rank."""
    k = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64)
    return 2**0.5 * (k * k + 2**0.5 * (seed + 1) * k + seed).sin().reshape(shape)


def waves(like: Params, gain: float = 1.0, seed: int = 0) -> Params:
    """Weights of these shapes, each a wave of its own of variance ``gain^2`` over the number of inputs (vectors and
    scalars: 0.01)."""
    return {
        name: wave(*p.shape, seed=seed + number) * (gain / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1)
        for number, (name, p) in enumerate(like.items())
    }


def placed(model: Model, seed: int = 0, gain: float = 1.0) -> Model:
    """The model with waves as its weights."""
    model.load_state_dict(waves(dict(model.named_parameters()), gain, seed), strict=False)
    return model
