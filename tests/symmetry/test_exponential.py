"""The batched matrix exponential equals torch's, value and derivatives."""

import laws
import pytest
import torch
from torch import Tensor

from meta_teleport.symmetry.exponential import NORM_LIMIT, matrix_exp

NORMS = (0.0, 1e-3, 1e-2, 0.1, 0.5, 1.0, 3.0, 10.0)


def algebra(norms: tuple[float, ...], k: int, generator: torch.Generator) -> Tensor:
    t = torch.randn(len(norms), k, k, generator=generator, dtype=torch.float64)
    return t / t.norm(dim=(1, 2), keepdim=True) * torch.tensor(norms, dtype=torch.float64)[:, None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norms", [*((n,) for n in NORMS), NORMS], ids=str)
@pytest.mark.parametrize("k", [1, 3, 20])
def test_equals_torch(
    norms: tuple[float, ...], k: int, dtype: torch.dtype, generator: torch.Generator, device: str
) -> None:
    t = algebra(norms, k, generator).to(device, dtype)
    expected = torch.linalg.matrix_exp(t.double())
    tolerance = 100 * torch.finfo(dtype).eps * max(1.0, max(norms))
    laws.assert_close(matrix_exp(t).double(), expected, tolerance)


def test_the_law_rejects_a_truncated_series(generator: torch.Generator) -> None:
    t = algebra((0.1,), 3, generator)
    second_order = torch.eye(3).double() + t + t @ t / 2
    laws.must_fail(laws.assert_close, second_order, torch.linalg.matrix_exp(t), 1e-12)


@pytest.mark.parametrize("norms", [(1e-3, 1.0), (3.0, 10.0)], ids=str)
def test_gradients_equal_torch(norms: tuple[float, ...], generator: torch.Generator) -> None:
    t = algebra(norms, 4, generator).requires_grad_()
    weights = torch.randn(t.shape, generator=generator, dtype=torch.float64)
    (ours,) = torch.autograd.grad((matrix_exp(t) * weights).sum(), t)
    (theirs,) = torch.autograd.grad((torch.linalg.matrix_exp(t) * weights).sum(), t)
    laws.assert_close(ours, theirs, 1e-12 * max(norms))


def test_second_derivatives(generator: torch.Generator) -> None:
    t = algebra((0.5, 1.0), 2, generator).requires_grad_()
    assert torch.autograd.gradcheck(matrix_exp, t)
    assert torch.autograd.gradgradcheck(matrix_exp, t)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2 * NORM_LIMIT, 1e30])
def test_one_bad_matrix_leaves_the_others_alone(bad: float, generator: torch.Generator) -> None:
    t = algebra((0.1, 1.0, 0.01), 3, generator)
    expected = torch.linalg.matrix_exp(t)
    t[1] = bad
    result = matrix_exp(t)
    assert bool(torch.isnan(result[1]).all())
    laws.assert_close(result[[0, 2]], expected[[0, 2]], 1e-12)


def test_a_large_matrix_does_not_cost_the_others_accuracy(generator: torch.Generator) -> None:
    t = algebra((0.3, 1.0, 2.0), 6, generator).float()
    wide = torch.cat([t, 700 * algebra((1.0,), 6, generator).float().triu(1)])
    expected = torch.linalg.matrix_exp(wide.double())
    result = matrix_exp(wide).double()
    laws.assert_close(result[:3], expected[:3], 1e-6)
    assert bool(torch.isfinite(result[3]).all())


def test_empty_batch() -> None:
    assert matrix_exp(torch.zeros(0, 3, 3)).shape == (0, 3, 3)
