"""The group axioms, the exponential map and the action on matrices, for every group."""

import laws
import pytest
import tolerances
import torch
from cases import GROUPS, TASKS
from torch import Tensor

from meta_teleport.symmetry.groups import GL, FirstOrder, Group, Permutation, PositiveScaling
from meta_teleport.symmetry.groups import GROUPS as NAMED

NAMES = [type(group).__name__ for group in GROUPS]
DTYPES = (torch.float32, torch.float64)
WITH_ALGEBRA = [group for group in GROUPS if group.has_algebra]


class WrongInverse(GL):
    """The negative control: a transpose in place of the inverse."""

    def inverse(self, g: Tensor) -> Tensor:
        return g.mT

    def apply_inverse(self, u: Tensor, g: Tensor) -> Tensor:
        return u @ g.mT


def sample(group: Group, generator: torch.Generator, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    return group.sample(TASKS, generator=generator, dtype=dtype, device=device)


def test_every_named_group_is_tested() -> None:
    assert {type(group) for group in GROUPS} == {*NAMED.values()}
    assert len(WITH_ALGEBRA) >= 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUPS, ids=NAMES)
def test_group_axioms(group: Group, dtype: torch.dtype, generator: torch.Generator, device: str) -> None:
    laws.group_axioms(group, *(sample(group, generator, device, dtype) for _ in range(3)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_axioms_reject_a_wrong_inverse_and_the_first_order_pair(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    for group in (WrongInverse(5), FirstOrder(5)):
        laws.must_fail(laws.group_axioms, group, *(sample(group, generator, dtype=dtype) for _ in range(3)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", WITH_ALGEBRA, ids=[type(g).__name__ for g in WITH_ALGEBRA])
@pytest.mark.parametrize("size", [1e-3, 1.0, 3.0])
def test_exponential(group: Group, size: float, dtype: torch.dtype, generator: torch.Generator, device: str) -> None:
    algebra = group.sample_algebra(TASKS, generator=generator, size=size, dtype=dtype, device=device)
    laws.exponential(group, algebra)


def test_exponential_rejects_a_wrong_inverse(generator: torch.Generator) -> None:
    for group in (WrongInverse(5), FirstOrder(5)):
        algebra = group.sample_algebra(TASKS, generator=generator, dtype=torch.float64)
        if isinstance(group, FirstOrder):
            algebra_squared = group.apply_inverse(group.exp(algebra), group.exp(algebra))
            assert (algebra_squared - group.identity(TASKS, dtype=torch.float64)).norm() > 1e-2
        else:
            laws.must_fail(laws.exponential, group, algebra)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUPS, ids=NAMES)
def test_matrices_act(group: Group, dtype: torch.dtype, generator: torch.Generator, device: str) -> None:
    g, h = sample(group, generator, device, dtype), sample(group, generator, device, dtype)
    v = torch.randn(TASKS, group.k, 4, generator=generator, dtype=torch.float64).to(device, dtype)
    u = torch.randn(TASKS, 3, group.k, generator=generator, dtype=torch.float64).to(device, dtype)
    laws.matrices_act(group, g, h, v, u)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_act_rejects_a_wrong_inverse(dtype: torch.dtype, generator: torch.Generator) -> None:
    group = WrongInverse(5)
    g, h = sample(group, generator, dtype=dtype), sample(group, generator, dtype=dtype)
    v, u = torch.randn(TASKS, 5, 5, generator=generator, dtype=dtype), torch.ones(TASKS, 5, 5, dtype=dtype)
    laws.must_fail(laws.matrices_act, group, g, h, v, u)


@pytest.mark.parametrize("group", WITH_ALGEBRA, ids=[type(g).__name__ for g in WITH_ALGEBRA])
def test_sampled_algebra_has_the_norm_asked_for(group: Group, generator: torch.Generator) -> None:
    algebra = group.sample_algebra(7, 2, generator=generator, size=0.3, dtype=torch.float64)
    assert algebra.shape == (7, 2, *group.algebra_shape)
    assert torch.allclose(algebra.flatten(2).norm(dim=2), torch.tensor(0.3, dtype=torch.float64), rtol=1e-12)


def test_identity_has_the_shape_of_an_element(generator: torch.Generator, device: str) -> None:
    for group in GROUPS:
        element = sample(group, generator, device)
        assert group.identity(TASKS, device=device).shape == element.shape
        assert group.identity(TASKS, device=device).device == element.device


def test_scalings_are_positive(generator: torch.Generator) -> None:
    assert bool((sample(PositiveScaling(5), generator) > 0).all())


def test_permutations_have_no_algebra() -> None:
    with pytest.raises(TypeError, match=r"no Lie algebra: sample elements with Permutation\.sample"):
        Permutation(5).algebra_shape  # noqa: B018
    with pytest.raises(TypeError, match=r"no exponential map: sample elements with Permutation\.sample"):
        Permutation(5).exp(torch.zeros(1, 5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_batched_solves_of_size_256(dtype: torch.dtype, generator: torch.Generator, device: str) -> None:
    group = GL(256)
    g = group.sample(4, generator=generator, size=1.0, dtype=dtype, device=device)
    u = torch.randn(4, 256, 256, generator=generator, dtype=torch.float64).to(device, dtype)
    back = group.apply_inverse(u, g) @ g
    laws.assert_close(back, u, tolerances.solved(group.k, float(torch.linalg.cond(g.double()).max()), dtype))
