"""Hand-written optimizers behind the contract of a rule: controls, baselines and references for tests.

They have no meta-parameters. Their settings are numbers, or tensors ``(tasks,)`` with one setting per task, so that
a whole grid of settings runs as one batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from meta_teleport.params import Params, axpy, per_task
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.rules.step_lengths import linear_decay
from meta_teleport.symmetry.symmetry import Element, Symmetry
from meta_teleport.teleportation.gauges import whitened_activations

Setting = float | Tensor


class NoState(NamedTuple):
    """The state of a rule without memory."""


class Moments(NamedTuple):
    """Running means of the gradient and of its square."""

    first: Params
    second: Params


def _scaled(a: Setting, x: Params) -> Params:
    return {name: per_task(a, tensor) * tensor for name, tensor in x.items()}


class GradientDescent(Rule):
    """``f_t = -lr grad_t``; the first ``warmup`` steps take ``warmup_lr`` instead."""

    def __init__(self, lr: Setting, warmup: int = 0, warmup_lr: Setting = 0.0) -> None:
        super().__init__()
        self.lr, self.warmup, self.warmup_lr = lr, warmup, warmup_lr

    def init(self, params: Params, symmetry: Symmetry) -> NoState:
        return NoState()

    def forward(self, observation: Observation, state: NoState) -> tuple[Proposal, NoState]:
        like = observation.loss
        lr, early = (torch.as_tensor(a, dtype=like.dtype, device=like.device) for a in (self.lr, self.warmup_lr))
        lr = torch.where(observation.step < self.warmup, early, lr)
        return Proposal(_scaled(-lr, observation.gradients)), state


class Momentum(Rule):
    """``m_t = momentum m_(t-1) + grad_t``, ``f_t = -lr m_t``: torch's SGD with momentum."""

    def __init__(self, lr: Setting, momentum: float = 0.9) -> None:
        super().__init__()
        self.lr, self.momentum = lr, momentum

    def init(self, params: Params, symmetry: Symmetry) -> Params:
        return {name: torch.zeros_like(tensor) for name, tensor in params.items()}

    def forward(self, observation: Observation, state: Params) -> tuple[Proposal, Params]:
        state = axpy(self.momentum, state, observation.gradients)
        return Proposal({name: -per_task(self.lr, m) * m for name, m in state.items()}), state

    def transport(self, state: Params, symmetry: Symmetry, elements: tuple[Element, ...]) -> Params:
        return symmetry.transport(state, elements)


class Adam(Rule):
    """Adam (Kingma and Ba 2015) with bias correction: torch's Adam; with a ``horizon``, step sizes decay linearly up to
    there (see :func:`linear_decay`)."""

    def __init__(
        self,
        lr: Setting,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        horizon: int | None = None,
    ) -> None:
        super().__init__()
        self.lr, self.beta1, self.beta2, self.epsilon, self.horizon = lr, beta1, beta2, epsilon, horizon
        self.decays = horizon is not None

    def init(self, params: Params, symmetry: Symmetry) -> Moments:
        zeros = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        return Moments(zeros, zeros)

    def forward(self, observation: Observation, state: Moments) -> tuple[Proposal, Moments]:
        gradients, t = observation.gradients, (observation.step + 1).to(observation.loss.dtype)
        squares = {name: g.square() for name, g in gradients.items()}
        first = axpy(self.beta1, state.first, _scaled(1 - self.beta1, gradients))
        second = axpy(self.beta2, state.second, _scaled(1 - self.beta2, squares))
        step = self.lr / (1 - self.beta1**t)
        if self.horizon is not None:
            step = step * linear_decay((t - 1) / self.time_scale, self.horizon)
        correction = 1 - self.beta2**t
        update = {
            name: -per_task(step, m) * m / ((second[name] / per_task(correction, m)).sqrt() + self.epsilon)
            for name, m in first.items()
        }
        return Proposal(update), Moments(first, second)

    def transport(self, state: Moments, symmetry: Symmetry, elements: tuple[Element, ...]) -> Moments:
        return Moments(symmetry.transport(state.first, elements), symmetry.transport_squares(state.second, elements))


class Whitening(Rule):
    """The hand-written teleporter: whiten every site, then a step of length 1 / lambda_max on the last layer.

    With g = (h h^T)^(-1/2) at the last site, h the activations there, the loss ``0.5 ||Y - U h||^2`` has, in the
    teleported U g^-1, the Hessian ``(g h)(g h)^T = I``, and one gradient step of length 1 / lambda_max solves for
    it. The contract takes the update first and the element second, so the step is written in the coordinates before
    the teleport: ``f_U = -grad_U g^T g / lambda_max``, with a bias and n > k ``f_b = -grad_b / lambda_max``.

    No meta-parameters: where n <= k the last layer can fit every label, this does so at once, and what it wins is
    not learned. For chains of layers whose groups are GL or positive scaling.
    """

    observes_hidden = True

    def init(self, params: Params, symmetry: Symmetry) -> NoState:
        return NoState()

    def forward(self, observation: Observation, state: NoState) -> tuple[Proposal, NoState]:
        groups = [site.group for site in observation.symmetry.sites]
        algebra = tuple(whitened_activations(group, h) for group, h in zip(groups, observation.hidden, strict=True))
        group, h = groups[-1], observation.hidden[-1]
        g = group.exp(algebra[-1])
        white = group.apply(g, h)
        names = list(observation.params)
        last = names[names.index(observation.symmetry.layers[-1].names[-1]) + 1 :]
        weight, *bias = last if h.shape[-1] > h.shape[-2] else last[:1]
        if bias:
            white = torch.cat([white, torch.ones_like(white[..., :1, :])], dim=-2)
        top = torch.linalg.matrix_norm(white.double(), ord=2).square().to(h.dtype)
        update = {name: torch.zeros_like(tensor) for name, tensor in observation.gradients.items()}
        update[weight] = group.apply(g.mT if g.ndim > 2 else g, group.apply(g, observation.gradients[weight].mT)).mT
        update |= {name: observation.gradients[name] for name in bias}
        return Proposal({name: -u / per_task(top, u) for name, u in update.items()}, algebra), state
