"""Logarithms of Gram matrices: they whiten, and their derivative holds where eigenvalues coincide."""

import laws
import torch

from meta_teleport.linalg.logarithm import log_diagonal, log_gram

FLOOR = 1e-12


def grams(generator: torch.Generator, k: int = 4) -> torch.Tensor:
    h = torch.randn(3, k, 9, generator=generator, dtype=torch.float64)
    return h @ h.mT


def test_half_of_the_logarithm_whitens(generator: torch.Generator) -> None:
    gram = grams(generator)
    g = torch.linalg.matrix_exp(-0.5 * log_gram(gram, FLOOR).matrix)
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    eye = torch.eye(4, dtype=torch.float64).expand_as(gram)
    laws.assert_close(g @ gram @ g.mT / mean, eye, 1e-12)
    laws.must_fail(laws.assert_close, gram / mean, eye, 1e-2)


def test_the_size_of_the_matrix_does_not_count(generator: torch.Generator) -> None:
    gram = grams(generator)
    laws.assert_close(log_gram(1e6 * gram, FLOOR).matrix, log_gram(gram, FLOOR).matrix, 1e-12)
    laws.must_fail(laws.assert_close, (1e6 * gram).log(), gram.log(), 1e-2)


def test_small_eigenvalues_count_as_the_floor() -> None:
    diagonal = torch.tensor([[1.0, 1e-3, 0.0]], dtype=torch.float64)
    found = log_gram(torch.diag_embed(diagonal), 1e-2)
    assert float(found.eigenvalues.min()) == float(torch.tensor(1e-2, dtype=torch.float64).log())
    laws.assert_close(found.matrix.diagonal(dim1=-2, dim2=-1), log_diagonal(diagonal, 1e-2).matrix, 1e-12)


def test_nothing_known_gives_nothing() -> None:
    blank = torch.zeros(2, 3, 3, dtype=torch.float64)
    blank[1] = torch.nan
    assert not log_gram(blank, FLOOR).matrix.any()
    assert not log_diagonal(torch.zeros(2, 3), FLOOR).matrix.any()


def test_derivative_is_that_of_the_function(generator: torch.Generator) -> None:
    def matrix(a: torch.Tensor) -> torch.Tensor:
        return log_gram(a + a.mT, FLOOR).matrix

    start = grams(generator, 3).requires_grad_()
    assert torch.autograd.gradcheck(matrix, start)
    degenerate = torch.diag(torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64)).unsqueeze(0).requires_grad_()
    assert torch.autograd.gradcheck(matrix, degenerate)


def test_the_derivative_across_two_eigenvalues_is_their_divided_difference_however_near_they_are() -> None:
    """``(log(1 + d) - log 1) / d``. By the mean of both derivatives where d is at most n = 1e-6, off by less than n^2;
    by the quotient where it is more, off by the rounding of eigenvalues (up to 20) and logarithms divided by d."""
    apart = torch.logspace(-15, 0, 61, dtype=torch.float64)
    gram = torch.diag_embed(
        torch.stack([torch.ones_like(apart), 1 + apart, torch.full_like(apart, 20.0)], 1)
    ).requires_grad_()
    (found,) = torch.autograd.grad(log_gram(gram, FLOOR).matrix[:, 0, 1].sum(), gram)
    apart = (1 + apart) - 1  # as it is stored
    expected = torch.where(apart > 0, apart.log1p() / apart, 1.0)
    error = (found[:, 0, 1] + found[:, 1, 0] - expected).abs()
    assert float(error.max()) <= 100 * torch.finfo(torch.float64).eps / 1e-6
