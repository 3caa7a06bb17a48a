"""Logarithms of Gram matrices: the directions in which an orbit is stretched, whatever the size of the layer.

For a Gram matrix G = Q diag(l) Q^T with mean eigenvalue 1,

    log G = Q diag(log max(l, floor)) Q^T,

so that exp(-1/2 log G) whitens. Computed in float64; eigenvalues below ``floor`` count as that.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from meta_teleport.linalg.decompositions import finite

NEAR = 1e-6


class LogGram(NamedTuple):
    """``matrix`` log G ``(..., k, k)`` (or its diagonal ``(..., k)``) and its eigenvalues ``(..., k)``, not sorted for
    diagonals; all zero where G is."""

    matrix: Tensor
    eigenvalues: Tensor


def log_gram(gram: Tensor, floor: float) -> LogGram:
    """The logarithm of positive semi-definite matrices ``(..., k, k)``, each divided by its mean eigenvalue.

    Differentiable once, at repeated eigenvalues too: the derivative is that of Daleckii and Krein, by divided
    differences. A matrix that is zero, or not finite, has logarithm 0.
    """
    wide = gram.double()
    mean = wide.diagonal(dim1=-2, dim2=-1).mean(-1)
    usable = (mean > 0) & finite(wide)
    eye = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
    normal = torch.where(usable[..., None, None], wide / torch.where(usable, mean, 1.0)[..., None, None], eye)
    matrix, logs = _MatrixLog.apply(normal, floor)
    return LogGram(matrix.to(gram.dtype), logs.to(gram.dtype))


def log_diagonal(diagonal: Tensor, floor: float | Tensor) -> LogGram:
    """The same for diagonal Gram matrices, given and returned as their diagonals ``(..., k)``; a ``floor`` for each
    is a tensor ``(..., 1)``."""
    mean = diagonal.mean(-1, keepdim=True)
    usable = (mean > 0) & torch.isfinite(diagonal).all(-1, keepdim=True)
    normal = torch.where(usable, diagonal / torch.where(usable, mean, 1.0), 1.0)
    logs = normal.clamp(min=torch.as_tensor(floor, dtype=normal.dtype, device=normal.device)).log()
    return LogGram(logs, logs)


class _MatrixLog(torch.autograd.Function):
    """The log of symmetric matrices and the logs of their eigenvalues, these raised to a floor."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        raised = values.clamp(min=floor)
        logs = raised.log()
        ctx.save_for_backward(values, logs, vectors, values >= floor)
        return (vectors * logs.unsqueeze(-2)) @ vectors.mT, logs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_logs: Tensor) -> tuple[Tensor, None]:
        values, logs, vectors, inside = ctx.saved_tensors
        derivative = torch.where(inside, 1 / values, 0.0)
        gap = values.unsqueeze(-1) - values.unsqueeze(-2)
        near = gap.abs() <= NEAR * values.abs().unsqueeze(-1)
        quotient = (logs.unsqueeze(-1) - logs.unsqueeze(-2)) / torch.where(near, 1.0, gap)
        slope = torch.where(near, (derivative.unsqueeze(-1) + derivative.unsqueeze(-2)) / 2, quotient)
        own = derivative * grad_logs
        inner = slope * (vectors.mT @ grad @ vectors) + torch.diag_embed(own)
        result = vectors @ inner @ vectors.mT
        return (result + result.mT) / 2, None
