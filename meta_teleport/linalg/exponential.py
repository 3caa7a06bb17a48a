"""The matrix exponential of batches of small matrices."""

from math import ceil, factorial, log2

import torch
from torch import Tensor

TAYLOR_DEGREES = (3, 5, 7, 9, 13, 17)
NORM_LIMIT, WIDE = 1024.0, 32.0


def matrix_exp_pair(a: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(a)`` and its inverse ``exp(-a)`` for a batch of matrices ``(*tasks, k, k)``.

    By scaling, Taylor polynomials of cosh and sinh, which share the powers of a^2, and squaring. Exact to
    rounding, and several times faster than ``torch.linalg.matrix_exp``, forward and backward, on batches of small
    matrices near zero: degree and scaling are chosen once for all matrices of Frobenius norm up to ``WIDE``, and once
    for those above it, and rounding grows with the largest. A norm above ``NORM_LIMIT`` gives nan.
    """
    norms = torch.linalg.vector_norm(a.detach(), dim=(-2, -1))
    size = float(norms.max()) if a.numel() else 0.0
    if size <= WIDE:
        return _exp_pair(a, size)
    near = (norms <= WIDE)[..., None, None]
    far = torch.where((norms <= NORM_LIMIT)[..., None, None], a, torch.nan)
    inner, outer = (float(torch.where(norms <= limit, norms, 0).max()) for limit in (WIDE, NORM_LIMIT))
    small = _exp_pair(torch.where(near, a, 0.0), inner)
    large = _exp_pair(torch.where(near, 0.0, far), outer)
    return torch.where(near, small[0], large[0]), torch.where(near, small[1], large[1])


def _exp_pair(a: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """The same for matrices of norms up to ``size``."""
    squarings = max(0, ceil(log2(size))) if size > 1 else 0
    a, size = a / 2**squarings, size / 2**squarings
    tolerance = torch.finfo(a.dtype).eps / 4 / 2**squarings
    degree = next((m for m in TAYLOR_DEGREES if size ** (m + 1) / factorial(m + 1) < tolerance), TAYLOR_DEGREES[-1])
    square = a @ a
    cosh = _even_series(square, degree - 1, 0)
    sinh = a @ _even_series(square, degree - 1, 1)
    plus, minus = cosh + sinh, cosh - sinh
    for _ in range(squarings):
        plus, minus = plus @ plus, minus @ minus
    return plus, minus


def _even_series(square: Tensor, degree: int, shift: int) -> Tensor:
    """``sum_i a^(2i) / (2i + shift)!`` up to ``degree`` in a, from ``square = a^2``, by Horner's rule."""
    eye = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    result = eye + square / ((degree + shift) * (degree + shift - 1))
    for i in range(degree - 2, 0, -2):
        result = eye + (square @ result) / ((i + shift) * (i + shift - 1))
    return result


def matrix_exp(a: Tensor) -> Tensor:
    """``exp(a)``, see :func:`matrix_exp_pair`."""
    return matrix_exp_pair(a)[0]
