"""The recurrent cell equals torch's, value and derivatives."""

import laws
import tolerances
import torch
from torch import Tensor, nn

from meta_teleport.learned.cells import CellState, LSTMCell, StackedLSTM


def rounding(cell: LSTMCell, x: Tensor, state: CellState) -> float:
    """Gates are one product with both weights and both biases; six functions of them and products follow."""
    one = torch.ones_like(x[:, :1])
    weights = torch.cat([cell.weight_ih, cell.weight_hh, cell.bias_ih[:, None], cell.bias_hh[:, None]], 1)
    seen = torch.cat([x, state.hidden, one, one], 1)
    largest = float((seen @ weights.mT).detach().abs().max())
    return max(largest, 1.0) * tolerances.multiplied(seen.detach(), weights.detach().mT) + tolerances.summed(6)


def test_equals_torch(generator: torch.Generator) -> None:
    ours, theirs = LSTMCell(5, 7).double(), nn.LSTMCell(5, 7).double()
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    theirs.load_state_dict(ours.state_dict())
    x, h, c = (torch.randn(4, size, generator=generator, dtype=torch.float64) for size in (5, 7, 7))
    state = ours(x, CellState(h, c))
    hidden, cell = theirs(x, (h, c))
    tolerance = rounding(ours, x, CellState(h, c))
    laws.assert_close(state.hidden, hidden, tolerance)
    laws.assert_close(state.cell, cell, tolerance)
    a = torch.autograd.grad((state.hidden.sin() + state.cell).sum(), list(ours.parameters()))
    b = torch.autograd.grad((hidden.sin() + cell).sum(), [dict(theirs.named_parameters())[n] for n, _ in
                                                          ours.named_parameters()])  # fmt: skip
    for mine, other in zip(a, b, strict=True):
        laws.assert_close(mine, other, 1e-12)


def test_initial_distribution_is_torchs() -> None:
    for p in LSTMCell(5, 100).parameters():
        assert 0.09 < float(p.detach().abs().max()) <= 0.1


def test_stack_feeds_each_cell_with_the_one_below(generator: torch.Generator) -> None:
    stack = StackedLSTM(5, 6, layers=3).double()
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    states = stack.init(x)
    assert len(states) == 3 and not any(t.any() for s in states for t in s)
    out, new = stack(x, states)
    h = x
    for cell, state, expected in zip(stack.cells, states, new, strict=True):
        tolerance = rounding(cell, h, state)
        h = cell(h, state).hidden
        laws.assert_close(h, expected.hidden, tolerance)
    assert torch.equal(out, new[-1].hidden)
