"""The matrix exponential to all digits of float64, in integers: what floating point is compared with.

``torch.linalg.matrix_exp`` is no such reference: of a single matrix whose 1-norm is between 3.4e-4 and 0.05 in float64,
or 0.05 and 0.58 in float32, torch 2.14 is wrong by up to 1e-10 or 2e-5, on every processor (a coefficient of its
polynomial of degree 8: https://github.com/pytorch/pytorch/issues/196592).
"""

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

BITS, TERMS, SQUARINGS = 200, 40, 5


def exponential(a: Tensor) -> Tensor:
    """``exp(a)`` in float64 for matrices ``(tasks, k, k)`` of norm up to 32, as given.

    Fixed-point numbers of 200 bits; the Taylor series of ``a / 2^5`` up to degree 40, then five squarings: the result
    is off by 1e-45 or so before it is rounded.
    """
    found = [_exponential(matrix) for matrix in a.double().tolist()]
    return torch.tensor(found, dtype=torch.float64).reshape(a.shape)


def _exponential(matrix: list[list[float]]) -> list[list[float]]:
    one = 1 << BITS
    scaled = np.array([[int(Fraction(x) * (one >> SQUARINGS)) for x in row] for row in matrix], dtype=object)
    term = total = np.array([[one * (i == j) for j in range(len(matrix))] for i in range(len(matrix))], dtype=object)
    for i in range(1, TERMS + 1):
        term = (term @ scaled >> BITS) // i
        total = total + term
    for _ in range(SQUARINGS):
        total = total @ total >> BITS
    return [[x / one for x in row] for row in total.tolist()]
