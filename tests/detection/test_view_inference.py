"""Views of parameters, read off the ranks of the units that their entries make."""

import pytest
import torch
from torch import Tensor

from meta_teleport.detection.view_inference import view
from meta_teleport.operations.units import Use
from meta_teleport.symmetry.gathered import Gathered
from meta_teleport.symmetry.views import View


def use_of(*shape: int, part: tuple[slice, ...] = ()) -> Use:
    """A use of the parameter ``w``, or of a part of it, whole."""
    grid = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    return Use("w", tuple(axis[part] if part else axis for axis in grid), None, None, "here")


def seen(use: Use, ranks: Tensor, shape: tuple[int, ...], k: int, blocks: int = 1, rows: Tensor | None = None):
    rows = torch.zeros_like(ranks) if rows is None else rows
    return view(use, ranks, rows, torch.Size(shape), blocks, k)


def test_units_along_an_axis() -> None:
    assert seen(use_of(4, 3), torch.arange(4)[:, None], (4, 3), 4) == View("w", 2, (4, 3), (0,))
    assert seen(use_of(2, 4), torch.arange(4)[None], (2, 4), 4) == View("w", 2, (2, 4), (1,))


def test_units_behind_a_flatten() -> None:
    ranks = torch.arange(4).repeat_interleave(9)[None]
    assert seen(use_of(2, 36), ranks, (2, 36), 4) == View("w", 2, (2, 4, 9), (1,))
    assert seen(use_of(2, 36), torch.arange(4).repeat(9)[None], (2, 36), 4) == View("w", 2, (2, 9, 4), (2,))


def test_heads_are_blocks() -> None:
    assert seen(use_of(8, 3), torch.arange(8)[:, None], (8, 3), 4, 2) == View("w", 2, (2, 4, 3), (1,), (0,))


def test_a_part_of_a_parameter() -> None:
    ranks = torch.cat([torch.full((4,), -1), torch.arange(4), torch.full((4,), -1)])[:, None]
    assert seen(use_of(12, 3), ranks, (12, 3), 4) == View("w", 2, (4, 3), (0,), part=(0, 4, 4))
    only = use_of(12, 3, part=(slice(4, 8),))
    assert seen(only, torch.arange(4)[:, None], (12, 3), 4) == View("w", 2, (4, 3), (0,), part=(0, 4, 4))


def test_units_in_two_axes_of_a_grouped_convolution() -> None:
    ranks = torch.arange(6).reshape(2, 1, 3).expand(2, 2, 3).reshape(4, 3)[..., None]
    assert seen(use_of(4, 3, 5), ranks, (4, 3, 5), 6) == View("w", 3, (2, 2, 3, 5), (0, 2))


def test_a_view_shows_the_units_that_it_was_made_of() -> None:
    ranks = torch.arange(4).repeat_interleave(9)[None]
    found = seen(use_of(2, 36), ranks, (2, 36), 4)
    assert found is not None
    rows = found.matrix(ranks.expand(2, 36))
    assert torch.equal(rows, torch.arange(4)[:, None].expand(4, 18))


@pytest.mark.parametrize(
    "ranks", [[3, 2, 1, 0], [0, 1, 3, 2], [2, 3, 4, 5, 0, 1], [4, 5, 0, 1, 2, 3], [5, 0, 1, 2, 3, 4]]
)
def test_shuffled_units_are_gathered(ranks: list[int]) -> None:
    k = len(ranks)
    found = seen(use_of(k, 3), torch.tensor(ranks)[:, None], (k, 3), k)
    weight = torch.arange(3.0 * k).reshape(k, 3)
    assert isinstance(found, Gathered)
    assert torch.equal(found.matrix(weight), weight[torch.tensor(ranks).argsort()])


def test_units_with_gaps_are_gathered() -> None:
    found = seen(use_of(4, 3), torch.tensor([0, -1, 1, -1])[:, None], (4, 3), 2)
    weight = torch.arange(12.0).reshape(4, 3)
    assert isinstance(found, Gathered)
    assert torch.equal(found.matrix(weight), weight[::2])


def test_interleaved_heads_are_gathered() -> None:
    ranks = torch.tensor([[0, 1], [-1, -1], [2, 3], [-1, -1]]).reshape(-1)
    found = seen(use_of(8, 3), ranks[:, None], (8, 3), 2, blocks=2)
    weight = torch.arange(24.0).reshape(8, 3)
    assert isinstance(found, Gathered) and found.front == (2, 2)
    assert torch.equal(found.matrix(weight), weight.reshape(2, 2, 2, 3)[:, 0])


def test_units_that_repeat_at_different_distances_have_no_view() -> None:
    assert seen(use_of(4, 3), torch.tensor([0, 1, 1, 0])[:, None], (4, 3), 2) is None
    assert seen(use_of(4, 3), torch.tensor([0, 1, 1, 1])[:, None], (4, 3), 2) is None


def test_units_of_different_rows_have_no_view() -> None:
    ranks = torch.tensor([0, 1, 0, 1])[:, None]
    straight, crossed = torch.tensor([0, 0, 1, 1])[:, None], torch.tensor([0, 1, 1, 0])[:, None]
    assert seen(use_of(4, 3), ranks, (4, 3), 2, rows=straight) == View("w", 2, (2, 2, 3), (1,))
    assert seen(use_of(4, 3), ranks, (4, 3), 2, rows=crossed) is None


def test_an_entry_that_makes_two_units_has_no_view() -> None:
    twice = Use("w", tuple(c.repeat(2, 1) for c in use_of(4, 3).coordinates), None, None, "here")
    assert seen(twice, torch.arange(4).repeat(2)[:, None], (4, 3), 4) == View("w", 2, (4, 3), (0,))
    assert seen(twice, torch.arange(8)[:, None], (4, 3), 8) is None
    half = torch.cat([torch.full((4,), -1), torch.arange(4)])[:, None]
    assert seen(twice, half, (4, 3), 4) is None
