"""The coordinate-wise LSTM of Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent".

One LSTM of two layers, shared by all coordinates of all parameters, each with a recurrent state of its own. It reads
the gradient g of its coordinate and running means m_j of it at two time scales (without bias), each as

    (log|x| / p, sign x)   if |x| >= e^-p,      (-1, e^p x)   else,      p = 10,

and gives a direction d and a log step length a per coordinate:

    f = 0.1 exp(a) d / sqrt(fan-in).

Published are g alone, d alone and the factor 0.1; the means, a, and units in which neither the scale of the loss nor
the width of a layer matters are additions. A teleport moves the running means along. The recurrent states stay with
their coordinates: they are no linear function of the gradients, so no group acts on them, and after a teleport they
remember gradients of other coordinates, the more the further it went.
"""

from math import exp
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.learned.cells import CellState, StackedLSTM
from meta_teleport.learned.learned_rule import LearnedRule
from meta_teleport.params import Params, flatten, norm, unflatten
from meta_teleport.rules.rule import Observation, Proposal
from meta_teleport.rules.step_lengths import fan_in, linear_decay
from meta_teleport.symmetry.symmetry import Element, Symmetry

Features = Literal["normalized", "raw"]

P = 10.0
DECAYS = (0.9, 0.99)
INPUTS = 2 * (1 + len(DECAYS))
SCALE = 0.1
STEP_RANGE = 8.0
PIECE = 4096


class CoordinatewiseState(NamedTuple):
    """Recurrent states ``(tasks, coordinates, hidden)``, one per layer; root mean square of the first gradient
    ``(tasks,)``; running means of the gradient, one per decay, with their bias still in."""

    cells: tuple[CellState, ...]
    unit: Tensor
    means: tuple[Params, ...]


class Coordinatewise(LearnedRule):
    """The coordinate-wise LSTM; fits every network.

    Memory goes with the number of coordinates: in float32 about 330 bytes each for the state, and while it is trained
    1.5 KB each per task and step of a window.

    Args:
        hidden_size: Units of every LSTM cell.
        horizon: Steps it is trained for; step lengths decay linearly up to there and as horizon / t past it.
        start: log of the step length before training, in units of ``0.1 / sqrt(fan-in)``.
        features: normalized (gradients divided by the root mean square of the first one) or raw (published).
    """

    decays = True
    horizon: int

    def __init__(
        self, hidden_size: int = 20, horizon: int = 30, start: float = 0.0, features: Features = "normalized"
    ) -> None:
        super().__init__()
        if hidden_size < 1 or horizon < 1:
            raise UserError(f"hidden_size {hidden_size} and horizon {horizon} must both be at least 1")
        if features not in ("normalized", "raw"):
            raise UserError(f"unknown features '{features}': choose one of normalized, raw")
        self.hidden_size, self.horizon, self.start, self.features = hidden_size, horizon, start, features
        self.lstm = StackedLSTM(INPUTS, hidden_size, layers=2)
        self.head = nn.Linear(hidden_size, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def init(self, params: Params, symmetry: Symmetry) -> CoordinatewiseState:
        flat = flatten(params)
        zero = flat.new_zeros(*flat.shape, self.hidden_size)
        blank = {name: torch.zeros_like(p) for name, p in params.items()}
        cells = tuple(CellState(zero, zero) for _ in self.lstm.cells)
        return CoordinatewiseState(cells, flat.new_ones(len(flat)), (blank,) * len(DECAYS))

    def forward(self, observation: Observation, state: CoordinatewiseState) -> tuple[Proposal, CoordinatewiseState]:
        gradients, t = observation.gradients, observation.step.to(observation.loss.dtype)
        unit = self._unit(observation, state.unit)
        means = tuple(
            {name: torch.lerp(mean[name], g, 1 - decay) for name, g in gradients.items()}
            for decay, mean in zip(DECAYS, state.means, strict=True)
        )
        scales = [unit, *(unit * (1 - decay ** (t + 1)) for decay in DECAYS)]
        read = [flatten(x) / scale.unsqueeze(1) for x, scale in zip((gradients, *means), scales, strict=True)]
        features = torch.cat([log_and_sign(x) for x in read], -1)
        flat = tuple(CellState(h.flatten(0, 1), c.flatten(0, 1)) for h, c in state.cells)
        new = self._recur(features.flatten(0, 1), flat)
        shape = features.shape[:2]
        cells = tuple(CellState(h.unflatten(0, shape), c.unflatten(0, shape)) for h, c in new)
        direction, log_length = self.head(cells[-1].hidden).unbind(-1)
        length = (self.start + STEP_RANGE * torch.tanh(log_length / STEP_RANGE)).exp()
        decay = linear_decay(t / self.time_scale, self.horizon).unsqueeze(1)
        update = unflatten(SCALE * decay * length * direction, gradients)
        update = {name: f / fan_in(f) ** 0.5 for name, f in update.items()}
        return Proposal(update), CoordinatewiseState(cells, unit, means)

    def transport(
        self, state: CoordinatewiseState, symmetry: Symmetry, elements: tuple[Element, ...]
    ) -> CoordinatewiseState:
        return state._replace(means=tuple(symmetry.transport(mean, elements) for mean in state.means))

    def _recur(self, x: Tensor, states: tuple[CellState, ...]) -> tuple[CellState, ...]:
        """The states ``(coordinates, hidden)`` after one more step. Without a graph in pieces, whose gates stay in the
        cache."""
        if torch.is_grad_enabled():
            return self.lstm(x, states)[1]
        pieces = zip(x.split(PIECE), *(h.split(PIECE) for state in states for h in state), strict=True)
        found = [self.lstm(piece, tuple(map(CellState, h[::2], h[1::2])))[1] for piece, *h in pieces]
        return tuple(CellState(*(torch.cat(t) for t in zip(*cell, strict=True))) for cell in zip(*found, strict=True))

    def _unit(self, observation: Observation, unit: Tensor) -> Tensor:
        """What gradients are divided by, ``(tasks,)``; it depends on the initial parameters alone, never on phi."""
        if self.features == "raw":
            return unit
        count = sum(g[0].numel() for g in observation.gradients.values())
        size = norm(observation.gradients).detach() / count**0.5
        return torch.where((observation.step == 0) & (size > 0), size, unit)


def log_and_sign(x: Tensor) -> Tensor:
    """The two features of numbers ``(...)``, as ``(..., 2)``; appendix A of the paper."""
    return torch.stack([x.abs().clamp(min=exp(-P)).log() / P, (exp(P) * x).clamp(-1, 1)], -1)
