"""Evolution strategies: meta-gradients from the meta-losses of perturbed meta-parameters, without back-propagation.

The tasks of a window are divided among pairs of particles. A pair draws ``eps ~ N(0, sigma^2)`` for every
meta-parameter and trains its tasks twice, with ``phi + eps`` and with ``phi - eps``. With F(task, phi) the meta-loss of
a window, both estimators are means over tasks of

    xi (F(task, phi + eps) - F(task, phi - eps)) / (2 sigma^2)

- :func:`es`, truncated: ``xi = eps``. The mean is the gradient of ``E F(task, phi + eps)``, the smoothed meta-loss of
  this window, as if what came before it did not depend on phi.
- :func:`pes`, persistent (Vicol, Metz, Sohl-Dickstein 2021): ``xi`` is the sum of eps over all windows since the task
  began, and each half of the pair goes on from its own state. Summed over the windows of a life, the mean is the
  gradient of the smoothed meta-loss of the whole life: cutting it makes no bias.

A task that fails in either half is left out and counted, as in back-propagation.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from meta_teleport.meta.estimators import Estimate, Objective, Penalty, known, mean_over, meta_losses, references
from meta_teleport.meta.unroll import Carry, start, unroll
from meta_teleport.params import Params
from meta_teleport.rules.rule import Rule
from meta_teleport.tasks.family import Tasks


class PairCarry(NamedTuple):
    """What :func:`pes` hands from window to window: the states of both halves, and per task the sum of the
    perturbations ``(tasks, *shape)`` since it began, by meta-parameter."""

    plus: Carry
    minus: Carry
    perturbation: Params

    @property
    def step(self) -> Tensor:
        """Steps done, ``(tasks,)``."""
        return self.plus.step

    @property
    def alive(self) -> Tensor:
        """The tasks that have failed in neither half, ``(tasks,)``."""
        return self.plus.alive & self.minus.alive


class _Half(NamedTuple):
    """One half of the pairs after a window: meta-losses ``(tasks,)``, losses ``(steps, tasks)``, and the next carry."""

    values: Tensor
    losses: Tensor
    carry: Carry


def start_pairs(rule: Rule, tasks: Tasks) -> PairCarry:
    """The carry of :func:`pes` before the first step of every task."""
    carry = start(rule, tasks)
    none = {name: p.new_zeros(tasks.count, *p.shape) for name, p in rule.named_parameters()}
    return PairCarry(carry, carry, none)


@torch.no_grad()
def es(
    rule: Rule,
    phi: Params,
    tasks: Tasks,
    carry: Carry,
    steps: int,
    objective: Objective,
    *,
    sigma: float,
    pairs: int,
    generator: torch.Generator,
    penalty: Penalty | None = None,
    losses_before: bool = False,
    errors: bool = False,
) -> Estimate:
    """Antithetic evolution strategies on one window: both halves of a pair begin where the tasks are, and the tasks go
    on from where ``phi + eps`` has led them. ``sigma`` is in units of the meta-parameters, ``1 <= pairs <= tasks``."""
    drawn = _draw(phi, sigma, pairs, generator)
    seen = (tasks, steps, objective, penalty, losses_before, errors)
    plus, minus = (_half(rule, phi, drawn, sign, carry, *seen) for sign in (1.0, -1.0))
    estimate = _estimate(_per_task(drawn, tasks.count), plus, minus, carry.alive, sigma)
    return estimate._replace(carry=plus.carry.keeping(estimate.carry.alive))


@torch.no_grad()
def pes(
    rule: Rule,
    phi: Params,
    tasks: Tasks,
    carry: PairCarry,
    steps: int,
    objective: Objective,
    *,
    sigma: float,
    pairs: int,
    generator: torch.Generator,
    penalty: Penalty | None = None,
    losses_before: bool = False,
    errors: bool = False,
) -> Estimate:
    """Persistent evolution strategies on one window, on a carry of :func:`start_pairs`. Arguments as in :func:`es`."""
    drawn = _draw(phi, sigma, pairs, generator)
    seen = (tasks, steps, objective, penalty, losses_before, errors)
    plus = _half(rule, phi, drawn, 1.0, carry.plus, *seen)
    minus = _half(rule, phi, drawn, -1.0, carry.minus, *seen)
    total = {name: carry.perturbation[name] + eps for name, eps in _per_task(drawn, tasks.count).items()}
    return _estimate(total, plus, minus, carry.alive, sigma)


def _draw(phi: Params, sigma: float, pairs: int, generator: torch.Generator) -> Params:
    """One perturbation per pair, ``(pairs, *shape)``."""
    return {
        name: sigma * torch.randn(pairs, *p.shape, generator=generator, dtype=p.dtype).to(p.device)
        for name, p in phi.items()
    }


def _per_task(drawn: Params, count: int) -> Params:
    """The perturbation of each task's pair, ``(count, *shape)``: pairs have neighbouring tasks, as even as can be."""
    pairs = len(next(iter(drawn.values())))
    sizes = torch.tensor([len(part) for part in torch.arange(count).tensor_split(pairs)])
    return {name: eps.repeat_interleave(sizes.to(eps.device), dim=0) for name, eps in drawn.items()}


def _half(
    rule: Rule,
    phi: Params,
    drawn: Params,
    sign: float,
    carry: Carry,
    tasks: Tasks,
    steps: int,
    objective: Objective,
    penalty: Penalty | None,
    losses_before: bool,
    errors: bool,
) -> _Half:
    """One window of all tasks, pair after pair, at ``phi + sign eps``."""
    halves = []
    pairs = len(next(iter(drawn.values())))
    for i, part in enumerate(torch.arange(tasks.count, device=carry.step.device).tensor_split(pairs)):
        moved = {name: p + sign * drawn[name][i] for name, p in phi.items()}
        own, at = tasks.select(part), tree_map(lambda leaf, part=part: leaf[part], carry)
        initial, before = references(own, at, penalty, errors)
        losses, new = unroll(rule, moved, own, at, steps, losses_before=losses_before, errors=errors)
        halves.append(_Half(meta_losses(objective, penalty, losses, initial, before), losses, new))
    values, losses = torch.cat([half.values for half in halves]), torch.cat([half.losses for half in halves], dim=1)
    return _Half(values, losses, tree_map(lambda *leaves: torch.cat(leaves), *(half.carry for half in halves)))


def _estimate(total: Params, plus: _Half, minus: _Half, alive: Tensor, sigma: float) -> Estimate:
    """The mean of ``xi (F+ - F-) / (2 sigma^2)`` over the tasks that both halves have finite meta-losses of, for
    ``xi = total`` ``(tasks, *shape)``."""
    slope = (plus.values - minus.values) / (2 * sigma**2)
    kept = plus.carry.alive & minus.carry.alive & torch.isfinite(slope)
    weight = torch.where(kept, slope, torch.zeros_like(slope)) / kept.sum().clamp(min=1)
    gradient = {name: torch.tensordot(weight.to(xi.dtype), xi, dims=1) for name, xi in total.items()}
    carry = PairCarry(plus.carry.keeping(kept), minus.carry, total)
    meta_loss = known(mean_over(kept, (plus.values + minus.values) / 2), kept)
    losses = (plus.losses + minus.losses) / 2
    return Estimate(meta_loss, gradient, losses, carry, int((alive & ~kept).sum()))
