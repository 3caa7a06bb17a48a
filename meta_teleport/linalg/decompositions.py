"""Decompositions of batches of matrices, which do not fail for all where one is not finite.

``torch.linalg`` raises for the whole batch; here the values of that one matrix are nan, and its vectors those of the
identity.
"""

import torch
from torch import Tensor


def finite(matrices: Tensor) -> Tensor:
    """Which of the matrices ``(..., m, n)`` are finite, ``(...)``."""
    return torch.isfinite(matrices).all(-1).all(-1)


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(..., k)``, rising, and eigenvectors ``(..., k, k)``, in columns, of symmetric ``(..., k, k)``."""
    usable, whole = _whole(matrices)
    values, vectors = torch.linalg.eigh(whole)
    return torch.where(usable.unsqueeze(-1), values, torch.nan), vectors


def eigvalsh(matrices: Tensor) -> Tensor:
    """The eigenvalues alone."""
    usable, whole = _whole(matrices)
    return torch.where(usable.unsqueeze(-1), torch.linalg.eigvalsh(whole), torch.nan)


def svd(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U ``(..., m, m)``, the singular values, falling, and V^T ``(..., n, n)``."""
    usable, whole = _whole(matrices)
    u, values, vt = torch.linalg.svd(whole)
    return u, torch.where(usable.unsqueeze(-1), values, torch.nan), vt


def svdvals(matrices: Tensor) -> Tensor:
    """The singular values alone."""
    usable, whole = _whole(matrices)
    return torch.where(usable.unsqueeze(-1), torch.linalg.svdvals(whole), torch.nan)


def pinv(matrices: Tensor) -> Tensor:
    """The pseudo-inverses ``(..., n, m)`` of ``(..., m, n)``; nan throughout for the matrix that is not finite."""
    usable, whole = _whole(matrices)
    return torch.where(usable[..., None, None], torch.linalg.pinv(whole), torch.nan)


def _whole(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Which matrices are finite, and all of them with the identity in place of those that are not."""
    usable = finite(matrices)
    eye = torch.eye(*matrices.shape[-2:], dtype=matrices.dtype, device=matrices.device)
    return usable, torch.where(usable[..., None, None], matrices, eye)
