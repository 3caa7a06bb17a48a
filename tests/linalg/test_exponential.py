"""The batched matrix exponential equals the exact one, value and derivatives."""

import exact
import laws
import pytest
import tolerances
import torch
from torch import Tensor

from meta_teleport.linalg.exponential import NORM_LIMIT, matrix_exp

NORMS = (0.0, 1e-3, 1e-2, 0.04, 0.1, 0.5, 1.0, 3.0, 10.0)
DTYPES = (torch.float32, torch.float64)


def algebra(norms: tuple[float, ...], k: int, generator: torch.Generator) -> Tensor:
    t = torch.randn(len(norms), k, k, generator=generator, dtype=torch.float64)
    return t / t.norm(dim=(1, 2), keepdim=True) * torch.tensor(norms, dtype=torch.float64)[:, None, None]


def equals_the_exact_one(result: Tensor, t: Tensor) -> None:
    """The norm of the largest matrix decides on the number of squarings of all."""
    size = float(t.norm(dim=(1, 2)).max())
    laws.assert_close(result.cpu().double(), exact.exponential(t), tolerances.exponential(t.shape[-1], size, t.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norms", [*((n,) for n in NORMS), NORMS], ids=str)
@pytest.mark.parametrize("k", [1, 3, 20])
def test_equals_the_exact_one(
    norms: tuple[float, ...], k: int, dtype: torch.dtype, generator: torch.Generator, device: str
) -> None:
    t = algebra(norms, k, generator).to(dtype)
    equals_the_exact_one(matrix_exp(t.to(device)), t)


def test_the_exact_one_is_that_of_closed_forms() -> None:
    """A rotation, a diagonal and a nilpotent matrix, to the last digits; e^10 to 10 of them."""
    angle, zero = torch.tensor(0.7, dtype=torch.float64), torch.zeros(2, 2).double()
    turn = torch.stack([torch.stack([0 * angle, -angle]), torch.stack([angle, 0 * angle])])
    found = exact.exponential(torch.stack([turn, torch.diag(torch.tensor([10.0, -10.0]).double()), zero]))
    turned = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    diagonal = torch.diag(torch.tensor([10.0, -10.0]).double().exp())
    expected = torch.stack([turned, diagonal, torch.eye(2).double()])
    laws.assert_close(found, expected, tolerances.summed(2))
    nilpotent = torch.tensor([[[0.0, 3.0, 5.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]]).double()
    assert exact.exponential(nilpotent).tolist() == [[[1, 3, 8], [0, 1, 2], [0, 0, 1]]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_law_rejects_a_truncated_series(dtype: torch.dtype, generator: torch.Generator) -> None:
    t = algebra((0.1,), 3, generator).to(dtype)
    second_order = torch.eye(3, dtype=dtype) + t + t @ t / 2
    laws.must_fail(equals_the_exact_one, second_order, t)


@pytest.mark.parametrize("norms", [(1e-3, 1.0), (3.0, 10.0)], ids=str)
def test_gradients_equal_the_exact_ones(norms: tuple[float, ...], generator: torch.Generator) -> None:
    """The gradient of <W, exp(T)> is the upper right block of exp([[T^T, W], [0, T^T]])."""
    t = algebra(norms, 4, generator).requires_grad_()
    weights = torch.randn(t.shape, generator=generator, dtype=torch.float64)
    (ours,) = torch.autograd.grad((matrix_exp(t) * weights).sum(), t)
    blocks = torch.zeros(2, 8, 8, dtype=torch.float64)
    blocks[:, :4, :4] = blocks[:, 4:, 4:] = t.detach().mT
    blocks[:, :4, 4:] = weights
    expected = exact.exponential(blocks)[:, :4, 4:]
    laws.assert_close(ours, expected, tolerances.exponential(8, max(norms)))
    laws.must_fail(laws.assert_close, ours, weights, 1e-3)


def test_second_derivatives(generator: torch.Generator) -> None:
    t = algebra((0.5, 1.0), 2, generator).requires_grad_()
    assert torch.autograd.gradcheck(matrix_exp, t)
    assert torch.autograd.gradgradcheck(matrix_exp, t)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2 * NORM_LIMIT, 1e30])
def test_one_bad_matrix_leaves_the_others_alone(bad: float, generator: torch.Generator) -> None:
    t = algebra((0.1, 1.0, 0.01), 3, generator)
    good = t[[0, 2]].clone()
    t[1] = bad
    result = matrix_exp(t)
    assert bool(torch.isnan(result[1]).all())
    equals_the_exact_one(result[[0, 2]], good)


def test_a_large_matrix_does_not_cost_the_others_accuracy(generator: torch.Generator) -> None:
    t = algebra((0.3, 1.0, 2.0), 6, generator).float()
    wide = torch.cat([t, 700 * algebra((1.0,), 6, generator).float().triu(1)])
    result = matrix_exp(wide)
    equals_the_exact_one(result[:3], t)
    assert bool(torch.isfinite(result[3]).all())


def test_empty_batch() -> None:
    assert matrix_exp(torch.zeros(0, 3, 3)).shape == (0, 3, 3)
