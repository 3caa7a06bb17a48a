"""L-BFGS for a batch of tasks: every step of every task is one gradient evaluation.

Two-loop recursion (Nocedal and Wright, algorithm 7.4) and a strong Wolfe line search that brackets and interpolates.
Tasks are at different points of their line searches at the same time, so every decision is a mask.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from meta_teleport.params import Params, flatten, unflatten
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.symmetry.symmetry import Symmetry

DECREASE, CURVATURE = 1e-4, 0.9
TRIALS = 20


class LBFGSState(NamedTuple):
    """Base point, its loss and gradient; the line search along ``direction`` (slope at 0, trial length, bracket,
    number of trials); the history of steps, gradient differences and their inner products, newest last."""

    base: Tensor
    loss: Tensor
    gradient: Tensor
    direction: Tensor
    slope: Tensor
    length: Tensor
    low: Tensor
    high: Tensor
    trials: Tensor
    steps: Tensor
    differences: Tensor
    products: Tensor


class LBFGS(Rule):
    """Limited-memory BFGS with memory ``history``. Its line search keeps the best point it found."""

    monotone = True

    def __init__(self, history: int = 10) -> None:
        super().__init__()
        self.history = history

    def init(self, params: Params, symmetry: Symmetry) -> LBFGSState:
        x = flatten(params)
        number = x.new_zeros(x.shape[0])
        memory = x.new_zeros(x.shape[0], self.history, x.shape[1])
        products = x.new_zeros(x.shape[0], self.history)
        inf = number + torch.inf
        return LBFGSState(x, inf, x, x, number, number, number, inf, number, memory, memory, products)

    def forward(self, observation: Observation, state: LBFGSState) -> tuple[Proposal, LBFGSState]:
        x, gradient, loss = flatten(observation.params), flatten(observation.gradients), observation.loss
        slope = (gradient * state.direction).sum(1)
        first = torch.isinf(state.loss)
        too_long = ~(loss <= state.loss + DECREASE * state.length * state.slope) | (slope > -CURVATURE * state.slope)
        too_short = ~too_long & (slope < CURVATURE * state.slope)
        exhausted = state.trials >= TRIALS
        accept = first | (~too_long & ~too_short) | (exhausted & (loss <= state.loss))
        searching = self._shrink_bracket(state, loss, too_long)
        accepted = self._new_direction(self._remember(state, x, gradient, accept & ~first), x, gradient, loss)
        restarted = self._new_direction(_forget(state), state.base, state.gradient, state.loss)
        new = _choose(accept, accepted, _choose(exhausted, restarted, searching))
        target = new.base + new.length.unsqueeze(1) * new.direction
        return Proposal(unflatten(target - x, observation.params)), new

    def _shrink_bracket(self, state: LBFGSState, loss: Tensor, too_long: Tensor) -> LBFGSState:
        low = torch.where(too_long, state.low, state.length)
        high = torch.where(too_long, state.length, state.high)
        width = high - low
        excess = loss - state.loss - state.length * state.slope
        parabola = -state.slope * state.length**2 / (2 * excess)
        inside = parabola.nan_to_num(0).clamp(low + 0.1 * width, low + 0.9 * width)
        inside = torch.where(too_long, inside, low + 0.5 * width)
        length = torch.where(torch.isinf(high), 2 * low, inside)
        return state._replace(low=low, high=high, length=length, trials=state.trials + 1)

    def _remember(self, state: LBFGSState, x: Tensor, gradient: Tensor, accept: Tensor) -> LBFGSState:
        step, difference = x - state.base, gradient - state.gradient
        product = (step * difference).sum(1)
        numbers = torch.finfo(product.dtype)
        least = (numbers.eps * difference.square().sum(1)).clamp(min=numbers.tiny)  # below tiny 1 / product overflows
        keep = accept & (product > least)
        keep2, keep3 = keep[:, None], keep[:, None, None]
        return state._replace(
            steps=torch.where(keep3, _push(state.steps, step), state.steps),
            differences=torch.where(keep3, _push(state.differences, difference), state.differences),
            products=torch.where(keep2, _push(state.products, product), state.products),
        )

    def _new_direction(self, state: LBFGSState, x: Tensor, gradient: Tensor, loss: Tensor) -> LBFGSState:
        direction = -self._precondition(state, gradient)
        slope = (direction * gradient).sum(1)
        fresh = (state.products[:, -1] == 0) | (slope >= 0)
        direction = torch.where(fresh[:, None], -gradient, direction)
        slope = (direction * gradient).sum(1)
        length = torch.where(fresh, 1 / gradient.norm(dim=1).clamp(min=1), torch.ones_like(slope))
        zero = torch.zeros_like(slope)
        return state._replace(
            base=x, loss=loss, gradient=gradient, direction=direction, slope=slope, length=length,
            low=zero, high=zero + torch.inf, trials=zero,
        )  # fmt: skip

    def _precondition(self, state: LBFGSState, gradient: Tensor) -> Tensor:
        inverse = torch.where(state.products > 0, 1 / state.products, torch.zeros_like(state.products))
        weights = []
        for i in reversed(range(self.history)):
            weight = inverse[:, i] * (state.steps[:, i] * gradient).sum(1)
            gradient = gradient - weight[:, None] * state.differences[:, i]
            weights.append(weight)
        size = state.differences[:, -1].square().sum(1)
        scale = torch.where(size > 0, state.products[:, -1] / size, torch.ones_like(size))
        result = scale[:, None] * gradient
        for i, weight in enumerate(reversed(weights)):
            other = inverse[:, i] * (state.differences[:, i] * result).sum(1)
            result = result + (weight - other)[:, None] * state.steps[:, i]
        return result


def _push(memory: Tensor, newest: Tensor) -> Tensor:
    return torch.cat([memory[:, 1:], newest.unsqueeze(1)], 1)


def _forget(state: LBFGSState) -> LBFGSState:
    return state._replace(products=torch.zeros_like(state.products), steps=torch.zeros_like(state.steps))


def _choose(mask: Tensor, yes: LBFGSState, no: LBFGSState) -> LBFGSState:
    return LBFGSState(*(torch.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(yes, no, strict=True)))
