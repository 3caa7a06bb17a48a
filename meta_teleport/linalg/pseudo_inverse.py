"""Pseudo-inverses of matrices of full rank, batch by batch, that stay finite where one matrix of the batch is not."""

import torch
from torch import Tensor

from meta_teleport.linalg.decompositions import pinv


def invert_columns(x: Tensor) -> Tensor:
    """``X^+`` of shape ``(*tasks, n, d)`` for X ``(*tasks, d, n)`` of full rank; computed in float64, differentiable.

    Square: the inverse. Tall (n < d): ``R^-1 Q^T`` from X = QR, which does not square the condition number. Wide, and
    matrices without full rank (dead units): by singular values. No task of a batch makes this fail for the others.
    """
    d, n = x.shape[-2:]
    wide = x.double()
    if n > d:
        return pinv(wide).to(x.dtype)
    result, singular = _by_elimination(wide)
    if bool(singular.any()):
        singular, others = singular[..., None, None], torch.eye(d, n, dtype=wide.dtype, device=wide.device)
        regular, _ = _by_elimination(torch.where(singular, others, wide))
        result = torch.where(singular, pinv(torch.where(singular, wide, others)), regular)
    return result.to(x.dtype)


def _by_elimination(x: Tensor) -> tuple[Tensor, Tensor]:
    """``X^+`` for n <= d, and which matrices of the batch have no full rank (their result means nothing)."""
    eps = torch.finfo(x.dtype).eps
    if x.shape[-1] == x.shape[-2]:
        inverse, info = torch.linalg.inv_ex(x)
        condition = torch.linalg.matrix_norm(x.detach(), 1) * torch.linalg.matrix_norm(inverse.detach(), 1)
        return inverse, (info != 0) | ~(eps * condition < 1)
    q, r = torch.linalg.qr(x)
    diagonal = r.diagonal(dim1=-2, dim2=-1).detach().abs()
    singular = diagonal.amin(-1) <= x.shape[-2] * eps * diagonal.amax(-1)
    return torch.linalg.solve_triangular(r, q.mT, upper=True), singular
