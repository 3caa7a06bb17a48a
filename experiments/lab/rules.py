"""Hand-written optimizers behind the contract of a rule, batched over tasks.

Settings are numbers, or tensors ``(tasks,)`` with one setting per task. Parameters that are no matrices take Adam's
update.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from meta_teleport.linalg.newton_schulz import newton_schulz
from meta_teleport.params import Params, axpy, per_task
from meta_teleport.rules.classical import Adam, Moments, NoState, Setting
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.teleportation.acceptance import Limits, is_usable, only

FLOOR = 1e-6

Gauge = Callable[[Site, Params], Tensor]


class Falling(Rule):
    """The updates of ``rule`` times ``max(1 - t / horizon, 0)``."""

    horizon: int

    def __init__(self, rule: Rule, horizon: int) -> None:
        super().__init__()
        self.rule, self.horizon = rule, horizon

    def init(self, params: Params, symmetry: Symmetry) -> Any:
        return self.rule.init(params, symmetry)

    def forward(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
        proposal, state = self.rule(observation, state)
        left = (1 - observation.step / self.horizon).clamp(min=0).to(observation.loss.dtype)
        return Proposal({name: per_task(left, f) * f for name, f in proposal.update.items()}), state


class InGauge(Rule):
    """``rule`` with a teleport to a gauge after every ``every``-th step, moments transported.

    The move is a part of the update: ``f = g . (w + f_rule) - w``. Exact sites only.
    """

    def __init__(self, rule: Rule, gauge: Gauge, every: int = 10) -> None:
        super().__init__()
        self.rule, self.gauge, self.every = rule, gauge, every

    def init(self, params: Params, symmetry: Symmetry) -> Any:
        return self.rule.init(params, symmetry)

    def forward(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
        proposal, state = self.rule(observation, state)
        if int(observation.step[0] + 1) % self.every:
            return proposal, state
        start = observation.params
        params = axpy(1.0, proposal.update, start)
        for site in observation.symmetry.sites:
            g = usable(self.gauge(site, params), site)
            params, state = site.act(params, g), moved_state(site, state, g)
        return Proposal({name: p - start[name] for name, p in params.items()}), state


def usable(g: Tensor, site: Site) -> Tensor:
    """The element ``(tasks, *blocks, ...)``, but the identity for a task and block where it is not finite, or so
    ill-conditioned that rounding could move the loss by more than 1e-4."""
    return only(site.group, g, is_usable(site.group, g, Limits().condition(g.dtype)))


def moved_state(site: Site, state: Any, g: Tensor) -> Any:
    """The optimizer's moments moved with the parameters."""
    if isinstance(state, Moments):
        return Moments(site.transport(state.first, g), site.transport_squares(state.second, g))
    return site.transport(state, g) if isinstance(state, dict) else state


class MuonState(NamedTuple):
    """Momentum of the matrices, Adam's moments of all else, empty where a parameter has none."""

    momentum: Params
    moments: Moments


class Muon(Rule):
    """``torch.optim.Muon`` without weight decay (Jordan et al. 2024): the orthogonalised momentum of every matrix.

    b <- momentum b + (1 - momentum) g,   u = momentum b + (1 - momentum) g,
    f = -lr max(1, rows / columns)^(1/2) orthogonalised(u)
    """

    def __init__(self, lr: Setting, momentum: float = 0.95) -> None:
        super().__init__()
        self.lr, self.momentum, self.adam = lr, momentum, Adam(lr)

    def init(self, params: Params, symmetry: Symmetry) -> MuonState:
        matrices = {name: torch.zeros_like(p) for name, p in params.items() if p.ndim == 3}
        return MuonState(matrices, self.adam.init(_others(params, matrices), symmetry))

    def forward(self, observation: Observation, state: MuonState) -> tuple[Proposal, MuonState]:
        beta, update, momentum = self.momentum, {}, {}
        for name, b in state.momentum.items():
            g = observation.gradients[name]
            b = beta * b + (1 - beta) * g
            scale = max(1, g.shape[-2] / g.shape[-1]) ** 0.5
            direction = muon_direction(beta * b + (1 - beta) * g)
            update[name], momentum[name] = -per_task(self.lr, g) * scale * direction, b
        rest, moments = _adam(self.adam, observation, state.moments, momentum)
        return Proposal(_in_order(observation, update | rest)), MuonState(momentum, moments)


def muon_direction(matrix: Tensor) -> Tensor:
    """The direction of Muon for ``(tasks, m, n)``: singular values to about 1."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = newton_schulz(x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7))
    return x.mT if tall else x


class ShampooState(NamedTuple):
    """Running means of ``g g^T`` and ``g^T g`` of the matrices, Adam's moments of all else."""

    left: Params
    right: Params
    moments: Moments


class Shampoo(Rule):
    """Shampoo (Gupta, Koren and Singer 2018) with running means,

        L <- beta L + (1 - beta) g g^T,  R <- beta R + (1 - beta) g^T g,  f = -lr L^(-1/4) g R^(-1/4),

    both without bias, eigenvalues not below 1e-6 of their mean. Roots are taken anew at every step: old ones of few
    gradients are far too large in the directions not seen by then.
    """

    def __init__(self, lr: Setting, beta: float = 0.95) -> None:
        super().__init__()
        self.lr, self.beta, self.adam = lr, beta, Adam(lr)

    def init(self, params: Params, symmetry: Symmetry) -> ShampooState:
        left = {name: p.new_zeros(*p.shape[:2], p.shape[1]) for name, p in params.items() if p.ndim == 3}
        right = {name: p.new_zeros(len(p), *p.shape[2:] * 2) for name, p in params.items() if p.ndim == 3}
        return ShampooState(left, right, self.adam.init(_others(params, left), symmetry))

    def forward(self, observation: Observation, state: ShampooState) -> tuple[Proposal, ShampooState]:
        g, beta = observation.gradients, self.beta
        left = {name: beta * m + (1 - beta) * g[name] @ g[name].mT for name, m in state.left.items()}
        right = {name: beta * m + (1 - beta) * g[name].mT @ g[name] for name, m in state.right.items()}
        correction = 1 - beta ** (observation.step + 1)
        roots = [{name: fourth_root(m, correction) for name, m in side.items()} for side in (left, right)]
        update = {name: -per_task(self.lr, g[name]) * (roots[0][name] @ g[name] @ roots[1][name]) for name in left}
        rest, moments = _adam(self.adam, observation, state.moments, left)
        return Proposal(_in_order(observation, update | rest)), ShampooState(left, right, moments)


def fourth_root(gram: Tensor, correction: Tensor) -> Tensor:
    """``(M / correction)^(-1/4)`` of positive matrices ``(tasks, k, k)``; the zero matrix gives zero."""
    wide = gram.double() / per_task(correction.double(), gram)
    finite = wide.isfinite().all(-1).all(-1)[:, None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, wide, 0.0))
    mean = values.mean(-1, keepdim=True)
    values = torch.maximum(values, FLOOR * mean)
    power = torch.where(mean > 0, values, torch.inf) ** -0.25
    return torch.where(finite, (vectors * power.unsqueeze(-2)) @ vectors.mT, torch.nan).to(gram.dtype)


def _others(params: Params, matrices: Params) -> Params:
    return {name: p for name, p in params.items() if name not in matrices}


def _adam(adam: Adam, observation: Observation, moments: Moments, matrices: Params) -> tuple[Params, Moments]:
    """Adam's update of what is no matrix."""
    if not moments.first:
        return {}, moments
    proposal, moments = adam(observation._replace(gradients=_others(observation.gradients, matrices)), moments)
    return proposal.update, moments


def _in_order(observation: Observation, update: Params) -> Params:
    return {name: update[name] for name in observation.params}


class ScaledGradientDescent(Rule):
    """``B <- B - lr dL/dB (A A^T)^-1``, ``A <- A - lr (B^T B)^-1 dL/dA`` (Tong, Ma and Chi 2021): what gradient descent
    does to each factor after a teleport that whitens the other one."""

    def __init__(self, lr: Tensor) -> None:
        super().__init__()
        self.lr = lr

    def init(self, params: Params, symmetry: Symmetry) -> NoState:
        self.sites = symmetry.sites
        return NoState()

    def forward(self, observation: Observation, state: NoState) -> tuple[Proposal, NoState]:
        update = {name: torch.zeros_like(gradient) for name, gradient in observation.gradients.items()}
        for site in self.sites:
            for views, others in ((site.producers, site.consumers), (site.consumers, site.producers)):
                gram = _gram(others, observation.params)
                for view in views:
                    gradient = observation.gradients[view.name]
                    scaled = torch.linalg.solve_ex(gram, view.matrix(gradient).double())[0].to(gradient.dtype)
                    update[view.name] = -per_task(self.lr, gradient) * view.restore(scaled, gradient)
        return Proposal(update), state


def _gram(views: Sequence[View], params: Params) -> Tensor:
    matrices = [view.matrix(params[view.name]).double() for view in views]
    return torch.stack([matrix @ matrix.mT for matrix in matrices]).sum(0)
