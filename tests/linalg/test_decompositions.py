"""A matrix that is not finite spoils its own decomposition only."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from meta_teleport.linalg import decompositions
from meta_teleport.linalg.decompositions import finite

SYMMETRIC = ("eigh", "eigvalsh")
NAMES = (*SYMMETRIC, "svd", "svdvals", "pinv")


def batch(name: str, generator: torch.Generator) -> Tensor:
    """Three matrices of each of two tasks."""
    m = torch.randn(2, 3, 4, 4 if name in SYMMETRIC else 6, generator=generator, dtype=torch.float64)
    return m + m.mT if name in SYMMETRIC else m


def parts(function: Callable[[Tensor], Tensor | tuple[Tensor, ...]], matrices: Tensor) -> tuple[Tensor, ...]:
    found = function(matrices)
    return (found,) if isinstance(found, Tensor) else tuple(found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_the_others_are_those_of_torch_bit_by_bit_and_the_bad_one_is_nan(
    name: str, bad: float, generator: torch.Generator
) -> None:
    matrices = batch(name, generator)
    expected = parts(getattr(torch.linalg, name), matrices)
    assert all(map(torch.equal, parts(getattr(decompositions, name), matrices), expected))
    matrices[1, 2, 3, 0] = bad
    usable = finite(matrices)
    assert usable.tolist() == [[True, True, True], [True, True, False]]
    found = parts(getattr(decompositions, name), matrices)
    assert all(torch.equal(f[usable], e[usable]) for f, e in zip(found, expected, strict=True))
    values = found[0] if name != "svd" else found[1]
    assert bool(values[1, 2].isnan().all())


@pytest.mark.parametrize("name", NAMES)
def test_torch_fails_for_all(name: str, generator: torch.Generator) -> None:
    matrices = batch(name, generator)
    matrices[1, 2, 3, 0] = torch.nan
    with pytest.raises(torch.linalg.LinAlgError):
        getattr(torch.linalg, name)(matrices)
