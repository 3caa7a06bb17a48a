"""Updates whose few learned numbers per parameter do not depend on its size.

A small LSTM, shared by all parameters of all layers, reads what :mod:`task_features` says of the task and
:mod:`layer_features` of the parameter p, and gives a log step length and weights of its directions. Directions, in
natural units:

    polyak    s_p (2 L / |g_p|^2) g_p            s_p the part of the loss that p is to remove, a softmax over all p and
                                               a rest: for a quadratic loss with minimum 0, |g|^2 / 2 L is a curvature
    adam      exp(a_p) u_p sum_j w_pj m_pj / sqrt(v_p)     m_pj running means of the gradient at several time scales,
                                               v_p of its square, both without bias, moved along by teleports;
                                               u_p = 1 / sqrt(fan-in)
    muon      exp(a_p) u_p (sum_j w_pj m_pj / sqrt(v_p) + w_p O(m_p))     the same beside the orthogonal factor of the
                                               mean with decay 0.9, see :mod:`orthogonal`
    curvature 2 sigmoid(b + a_p) g_p / c_p      b where it starts; c_p an estimate of the largest curvature, see
                                               :mod:`curvatures`: along one p at a time, a quadratic loss with that
                                               curvature never rises
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.learned.cells import CellState, StackedLSTM
from meta_teleport.learned.curvatures import curvatures
from meta_teleport.learned.heads import polyak_length
from meta_teleport.learned.layer_features import LAYER_FEATURES, PRODUCED, read_layer_features
from meta_teleport.learned.learned_rule import LearnedRule
from meta_teleport.learned.orthogonal import orthogonalised
from meta_teleport.learned.task_features import FEATURES, Memory, no_memory, read_task_features
from meta_teleport.params import Params, lerp, norms, per_task, rows
from meta_teleport.rules.rule import Observation, Proposal
from meta_teleport.rules.step_lengths import fan_in, linear_decay
from meta_teleport.symmetry.symmetry import Element, Symmetry

Direction = Literal["polyak", "adam", "muon", "curvature"]
DIRECTIONS = ("polyak", "adam", "muon", "curvature")
AVERAGED = ("adam", "muon")
DECAYS = (0.5, 0.9, 0.99)
STEP_RANGE = 8.0
GAIN = 4.0


class LayerwiseState(NamedTuple):
    """Recurrent state ``(tasks, parameters, hidden)``, memory of the task features, running means of gradients
    (one per decay, or none) and of their squares (or none)."""

    cells: tuple[CellState, ...]
    memory: Memory
    means: tuple[Params, ...]
    squares: Params


class Layerwise(LearnedRule):
    """Learned step lengths per parameter tensor; fits every network.

    Args:
        direction: polyak (full batches and losses with minimum 0), adam or muon (stochastic training; muon takes longer
            per step) or curvature (squared losses of full batches).
        hidden_size: Units of the LSTM.
        horizon: Steps it is trained for; with directions adam and muon step lengths decay linearly up to there.
        start: Before training, log of the step length (adam, muon), b (curvature), or log of s_p over the rest (polyak)
            where a site produces with p: below zero, the last layer moves first, the others by little.
        beta2: Decay of the running mean of squared gradients.
        epsilon: Its square is added to that mean, in units of its average over the parameter.
    """

    observes_grams = True
    nonnegative_losses = True

    horizon: int

    def __init__(
        self,
        direction: Direction = "polyak",
        hidden_size: int = 32,
        horizon: int = 30,
        start: float = 0.0,
        beta2: float = 0.95,
        epsilon: float = 1e-3,
    ) -> None:
        super().__init__()
        if direction not in DIRECTIONS:
            raise UserError(f"unknown direction '{direction}': choose one of {', '.join(DIRECTIONS)}")
        self.direction, self.hidden_size, self.horizon = direction, hidden_size, horizon
        self.decays = direction in AVERAGED
        self.start, self.beta2, self.epsilon = start, beta2, epsilon
        self.lstm = StackedLSTM(FEATURES + LAYER_FEATURES, hidden_size, layers=1)
        self.head = nn.Linear(hidden_size, 1 + len(DECAYS) + (direction == "muon"))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def init(self, params: Params, symmetry: Symmetry) -> LayerwiseState:
        first = next(iter(params.values()))
        zero = first.new_zeros(len(first), len(params), self.hidden_size)
        blank = {name: torch.zeros_like(p) for name, p in params.items()}
        averaged = self.direction in AVERAGED
        return LayerwiseState(
            (CellState(zero, zero),),
            no_memory(first),
            (blank,) * len(DECAYS) if averaged else (),
            blank if averaged else {},
        )

    def forward(self, observation: Observation, state: LayerwiseState) -> tuple[Proposal, LayerwiseState]:
        sizes = norms(observation.gradients)
        of_task, memory = read_task_features(observation, sizes, state.memory, self.horizon, self.time_scale)
        means, squares = self._averages(observation, state)
        of_layers = read_layer_features(observation, sizes, means[1] if means else None)
        features = torch.cat([of_task.unsqueeze(1).expand(-1, of_layers.shape[1], -1), of_layers], -1)
        tasks, count, _ = features.shape
        cells = tuple(CellState(h.flatten(0, 1), c.flatten(0, 1)) for h, c in state.cells)
        hidden, cells = self.lstm(features.flatten(0, 1), cells)
        numbers = self.head(hidden).view(tasks, count, -1)
        if self.direction == "polyak":
            update = self._polyak(observation, self.start * of_layers[..., PRODUCED] + GAIN * numbers[..., 0])
        elif self.direction == "curvature":
            update = _against_curvature(observation, 2 * torch.sigmoid(self.start + numbers[..., 0]))
        else:
            length = (self.start + STEP_RANGE * torch.tanh(numbers[..., 0] / STEP_RANGE)).exp()
            length = self._in_units(length, observation.step, squares)
            weights = numbers[..., 1:].softmax(-1)
            update = self._adam(observation.step, length, weights[..., : len(DECAYS)], means, squares)
            if self.direction == "muon":
                update = _beside(update, length * weights[..., -1], orthogonalised(means[1]))
        cells = tuple(CellState(h.view(tasks, count, -1), c.view(tasks, count, -1)) for h, c in cells)
        return Proposal(update), LayerwiseState(cells, memory, means, squares)

    def transport(self, state: LayerwiseState, symmetry: Symmetry, elements: tuple[Element, ...]) -> LayerwiseState:
        if not state.means:
            return state
        means = tuple(symmetry.transport(mean, elements) for mean in state.means)
        return state._replace(means=means, squares=symmetry.transport_squares(state.squares, elements))

    def running_mean(self, state: LayerwiseState, decay: float) -> Params | None:
        return state.means[DECAYS.index(decay)] if state.means and decay in DECAYS else None

    def _averages(self, observation: Observation, state: LayerwiseState) -> tuple[tuple[Params, ...], Params]:
        """Running means with their bias still in."""
        if self.direction not in AVERAGED:
            return (), {}
        g = observation.gradients
        means = tuple(lerp(mean, g, 1 - decay) for decay, mean in zip(DECAYS, state.means, strict=True))
        squares = torch._foreach_mul([state.squares[name] for name in g], self.beta2)
        torch._foreach_addcmul_(squares, list(g.values()), list(g.values()), 1 - self.beta2)
        return means, dict(zip(g, squares, strict=True))

    def _polyak(self, observation: Observation, logits: Tensor) -> Params:
        gradients, loss = observation.gradients, observation.loss
        rest = torch.zeros_like(logits[:, :1])
        length = 2 * torch.cat([logits, rest], 1).softmax(1)
        update = {}
        for i, (name, g) in enumerate(gradients.items()):
            update[name] = -per_task(length[:, i] * polyak_length(loss, rows(g).square().sum(1)), g) * g
        return update

    def _in_units(self, length: Tensor, step: Tensor, params: Params) -> Tensor:
        """Lengths ``(tasks, parameters)`` in units of ``u_p``, decayed to what they are at this step."""
        decayed = length * linear_decay(step.to(length.dtype) / self.time_scale, self.horizon).unsqueeze(1)
        return decayed / length.new_tensor([fan_in(p) for p in params.values()]).sqrt()

    def _adam(
        self, step: Tensor, length: Tensor, weights: Tensor, means: tuple[Params, ...], squares: Params
    ) -> Params:
        t = step.to(length.dtype)
        tiny = torch.finfo(length.dtype).tiny
        unbiased = 1 - length.new_tensor(DECAYS) ** (t + 1).unsqueeze(1)
        factors = -length.unsqueeze(2) * weights / unbiased.unsqueeze(1)
        factors = factors * (1 - self.beta2 ** (t + 1)).sqrt()[:, None, None]
        update = {}
        for name, factor in zip(squares, factors.unbind(1), strict=True):
            v = squares[name]
            if v.requires_grad:  # in units of its mean, or the derivative of 1 / sqrt(v) overflows where v is small
                unit = rows(v).detach().mean(1).sqrt().clamp(min=tiny**0.5)
                v, factor = v / per_task(unit.square(), v), factor / unit.unsqueeze(1)
            size = v.add(per_task(self.epsilon**2 * rows(v).mean(1) + tiny, v)).sqrt_()
            first, *others = ((per_task(a, v), mean[name]) for a, mean in zip(factor.unbind(1), means, strict=True))
            mixed = first[0] * first[1]
            for a, mean in others:
                mixed = mixed.addcmul_(a, mean)
            update[name] = mixed.div_(size)
        return update


def _beside(update: Params, length: Tensor, directions: Params) -> Params:
    """The update with steps of these lengths ``(tasks, parameters)`` against other directions beside it."""
    lengths = dict(zip(update, length.unbind(1), strict=True))
    return {name: f.addcmul(per_task(lengths[name], f), directions[name], value=-1) for name, f in update.items()}


def _against_curvature(observation: Observation, length: Tensor) -> Params:
    length = length / curvatures(observation.params, observation.symmetry)
    gradients = observation.gradients
    return {name: -per_task(a, g) * g for a, (name, g) in zip(length.unbind(1), gradients.items(), strict=True)}
