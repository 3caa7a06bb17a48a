"""How far apart two correct computations of the same numbers may be, from eps, sizes and condition numbers.

Both sides of a comparison round. In whatever order, with or without fused or vectorised operations, a sum of n products
is within ``n u / (1 - n u) sum |x_i y_i|`` of its value, ``u = eps / 2`` (N. J. Higham, Accuracy and Stability of
Numerical Algorithms, 2002, section 3.1), so two of them are within ``n eps`` of each other, relative to the sum of the
absolute values. Everything here follows from that; all results are relative errors, to be multiplied by the size of
what is compared. Rounding errors have signs, so what is seen is smaller, about the square root.
"""

from collections.abc import Sequence
from math import exp, prod

import torch
from torch import Tensor


def summed(terms: float, condition: float = 1.0, dtype: torch.dtype = torch.float64) -> float:
    """``terms eps condition``: sums of so many terms, or numbers that as many roundings led to.

    ``condition = sum |x_i| / |sum x_i|`` is 1 where all terms have one sign. A function with relative derivative
    ``|x f'(x) / f(x)| = condition`` of such a sum is within the same bound.
    """
    return terms * torch.finfo(dtype).eps * condition


def multiplied(*factors: Tensor) -> float:
    """``n eps |A| |B| / |A B|``: the product of two matrices ``(*tasks, m, n)``, in the Euclidean norm of the worst
    task; for more of them with the sum of the inner sizes n and the product of the norms."""
    product = factors[0]
    for factor in factors[1:]:
        product = product @ factor
    norms = prod(factor.norm(dim=(-2, -1)) for factor in factors)
    inner = sum(factor.shape[-2] for factor in factors[1:])
    return summed(inner, float((norms / product.norm(dim=(-2, -1))).max()), product.dtype)


def solved(size: float, condition: float = 1.0, dtype: torch.dtype = torch.float64) -> float:
    """``3 size eps condition``: linear systems of ``size`` unknowns, and what is computed from their solutions.

    Elimination with pivoting solves a system whose matrix is off by ``3 n u |L| |U|`` (Higham, theorem 9.4; growth 1,
    which random matrices stay close to), which moves the solution by the condition number of the matrix times that.
    """
    return summed(3 * size, condition, dtype)


def exponential(size: int, norm: float, dtype: torch.dtype = torch.float64) -> float:
    """``10 size eps exp(2 min(norm, 1)) max(norm, 1)``: the exponential of a ``size x size`` matrix by a polynomial,
    scaling and squaring, beside the exact one (``exact.exponential``).

    A polynomial of degree up to 18 in the matrix, scaled to norm ``r <= 1``, takes at most 10 products, each of sums of
    ``size`` terms, whose absolute values add up to ``exp(r)`` where the exponential itself may be ``exp(-r)``. That is
    half of the formula, since one side is exact; squaring doubles the relative error every time, which makes less than
    ``2 max(norm, 1)`` of it.
    """
    return summed(10 * size, exp(2 * min(norm, 1.0)) * max(norm, 1.0), dtype)


def network(weights: Sequence[Tensor], inputs: Sequence[Tensor]) -> float:
    """Outputs of a network, layer by layer: the sum of ``n eps |W| |H| / |W H|`` over weights ``W`` and what they are
    applied to, columns ``H``; activations of slope 1 or less do not enlarge an error."""
    return sum(multiplied(w, h) for w, h in zip(weights, inputs, strict=True))


def cross_entropy(relative: float, outputs: Tensor, value: Tensor) -> float:
    """``2 relative max |outputs| / value``: a cross-entropy of outputs that are known to ``relative`` moves by at most
    twice as much as one of them. Then come an exponential, a logarithm and two sums over the classes."""
    size = float(outputs.abs().max() / value.abs().min())
    return 2 * size * relative + summed(2 * outputs.shape[-1], max(size, 1.0), value.dtype)


def squares(relative: float, outputs: Tensor, residual: Tensor) -> float:
    """``2 relative |outputs| / |residual|``, by the Cauchy-Schwarz inequality: half the squared residual of outputs
    that are known to ``relative``. Then a sum of so many squares. Tasks come first; the worst of them counts."""
    size = outputs.flatten(1).norm(dim=1) / residual.flatten(1).norm(dim=1)
    return 2 * relative * max(1.0, float(size.max())) + summed(residual[0].numel(), 1.0, outputs.dtype)
