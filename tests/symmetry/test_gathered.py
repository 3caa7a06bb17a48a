import pytest
import tolerances
import torch

from meta_teleport.symmetry.gathered import Gathered
from meta_teleport.symmetry.views import View


def interleaved(heads: int, k: int, e: int, part: int) -> Gathered:
    """Queries (part 0), keys or values of a weight (heads * 3 * k, e) that packs them head by head."""
    rows = torch.arange(heads * 3 * k * e).reshape(heads, 3, k, e)
    return Gathered("w", 2, (heads * 3 * k, e), (1,), (0,), places=rows[:, part])


@pytest.mark.parametrize("tasks", [(), (2,)])
def test_it_shows_what_it_says_and_restores_it(tasks: tuple[int, ...], generator: torch.Generator) -> None:
    weight = torch.randn(*tasks, 24, 5, generator=generator)
    view = interleaved(2, 4, 5, part=1)
    matrix = view.matrix(weight)
    assert matrix.shape == (*tasks, 2, 4, 5) and view.front == (2, 4) and view.size == 40
    assert torch.equal(matrix[..., 1, 2, :], weight[..., 12 + 4 + 2, :])
    assert torch.equal(view.restore(matrix, weight), weight)
    changed = view.restore(torch.zeros_like(matrix), torch.ones_like(weight)) == 0
    assert int(changed.sum()) == matrix.numel()


def test_where_there_is_a_grid_both_views_agree(generator: torch.Generator) -> None:
    weight = torch.randn(6, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    places = torch.arange(48).reshape(6, 2, 4)[:, 1].mT
    gathered, plain = Gathered("w", 2, (6, 8), (0,), places=places), View("w", 2, (6, 4), (1,), part=(1, 4, 4))
    assert torch.equal(gathered.matrix(weight), plain.matrix(weight))
    other = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    results = [view.restore(other * view.matrix(weight), weight) for view in (gathered, plain)]
    assert torch.equal(*results)
    gradients = [torch.autograd.grad(result.square().sum(), weight)[0] for result in results]
    assert torch.allclose(*gradients, rtol=tolerances.summed(4), atol=0)
