"""A recurrent cell from matrix products.

``torch.func.vmap`` refuses ``nn.LSTMCell`` and cuDNN's LSTM has no double backward; this one has both and equals
``nn.LSTMCell`` (a test).
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.learned.accumulated_linear import linear


class CellState(NamedTuple):
    """Hidden and cell state of one LSTM cell, each ``(tasks, hidden_size)``."""

    hidden: Tensor
    cell: Tensor


class LSTMCell(nn.Module):
    """One LSTM cell with the parameters and the initial distribution of ``nn.LSTMCell``."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        if hidden_size < 1:
            raise UserError(f"hidden_size is {hidden_size}: give 1 or more")
        self.hidden_size = hidden_size
        bound = hidden_size**-0.5

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))

        self.weight_ih, self.bias_ih = uniform(4 * hidden_size, input_size), uniform(4 * hidden_size)
        self.weight_hh, self.bias_hh = uniform(4 * hidden_size, hidden_size), uniform(4 * hidden_size)

    def forward(self, x: Tensor, state: CellState) -> CellState:
        gates = linear(x, self.weight_ih, self.bias_ih + self.bias_hh)
        gates = linear(state.hidden, self.weight_hh, gates)
        i, f, g, o = gates.chunk(4, dim=1)
        cell = torch.sigmoid(f) * state.cell + torch.sigmoid(i) * torch.tanh(g)
        return CellState(torch.sigmoid(o) * torch.tanh(cell), cell)


class StackedLSTM(nn.Module):
    """LSTM cells on top of one another; the output is the hidden state of the last."""

    def __init__(self, input_size: int, hidden_size: int, layers: int = 2) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        sizes = [input_size] + [hidden_size] * layers
        self.cells = nn.ModuleList(LSTMCell(d, k) for d, k in pairwise(sizes))

    def init(self, like: Tensor) -> tuple[CellState, ...]:
        """Zero states for as many tasks as ``like`` ``(tasks, ...)`` has, in its dtype and on its device."""
        zero = like.new_zeros(like.shape[0], self.hidden_size)
        return tuple(CellState(zero, zero) for _ in self.cells)

    def forward(self, x: Tensor, states: tuple[CellState, ...]) -> tuple[Tensor, tuple[CellState, ...]]:
        new = []
        for cell, state in zip(self.cells, states, strict=True):
            state = cell(x, state)
            x = state.hidden
            new.append(state)
        return x, tuple(new)
