"""Closed-form elements: representatives of an orbit chosen by a formula, not by a search."""

import torch
from torch import Tensor

from meta_teleport.symmetry.groups import GL, Group, PositiveScaling

FLOOR = 1e-14


def whitened(group: Group, hidden: Tensor) -> Tensor:
    """Algebra coordinates of the element that whitens the activations of one site.

    For GL, ``T = -1/2 log(h h^T)``, so that g = exp(T) gives ``(g h)(g h)^T = I`` on the span of h; for positive
    scaling the same with the diagonal of ``h h^T`` (every unit gets norm 1). ``hidden`` is h as columns
    ``(*tasks, k, n)``. Eigenvalues below 1e-14 of the largest are raised to that floor; computed in float64. Not
    differentiable.

    Raises ``TypeError`` for groups in which no element whitens.
    """
    h = hidden.detach().double()
    if isinstance(group, PositiveScaling):
        squares = h.square().sum(-1)
        floor = FLOOR * squares.amax(-1, keepdim=True)
        return (-0.5 * torch.maximum(squares, floor).log()).to(hidden.dtype)
    if not isinstance(group, GL):
        raise TypeError(f"no element of {type(group).__name__} whitens activations")
    values, vectors = torch.linalg.eigh(h @ h.mT)
    values = torch.maximum(values, FLOOR * values[..., -1:])
    return ((vectors * (-0.5 * values.log()).unsqueeze(-2)) @ vectors.mT).to(hidden.dtype)
