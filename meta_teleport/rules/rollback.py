"""Rollback: a rule that never leaves the best point it has seen for good.

The anchor is the best point so far. While the loss falls, the anchor follows; when a step has raised the loss, the
next proposal starts from the anchor again, with update and algebra shrunk by a trust factor that halves on every
failure and grows by a quarter on every success, up to 1. Since g leaves the loss alone, the loss after a step tends
to the anchor's as trust tends to 0, so a rule cannot drift away past the horizon it was trained for. Made for
losses that can be compared between steps (full batches).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from meta_teleport.params import Params, axpy, per_task, where
from meta_teleport.rules.rule import Observation, Proposal

SHRINK, GROW = 0.5, 1.25


class Anchor(NamedTuple):
    """The best point seen, what was observed there, and the trust factor ``(tasks,)``."""

    params: Params
    gradients: Params
    loss: Tensor
    trust: Tensor


def no_anchor(params: Params) -> Anchor:
    """The anchor before the first step: any finite loss improves on it."""
    first = next(iter(params.values()))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    return Anchor(params, zeros, first.new_full(first.shape[:1], torch.inf), first.new_ones(first.shape[0]))


def move_anchor(observation: Observation, anchor: Anchor) -> Anchor:
    """The anchor after one more observation."""
    better = observation.loss <= anchor.loss
    return Anchor(
        where(better, observation.params, anchor.params),
        where(better, observation.gradients, anchor.gradients),
        torch.where(better, observation.loss, anchor.loss),
        torch.where(better, (GROW * anchor.trust).clamp(max=1), SHRINK * anchor.trust),
    )


def at_anchor(observation: Observation, anchor: Anchor) -> Observation:
    """What the rule reads: the observation that was made at the anchor."""
    return observation._replace(params=anchor.params, gradients=anchor.gradients, loss=anchor.loss)


def from_anchor(proposal: Proposal, observation: Observation, anchor: Anchor) -> Proposal:
    """The proposal that goes from the present parameters to the anchor and on by a trusted part of the step."""
    back = axpy(-1.0, observation.params, anchor.params)
    return Proposal(
        axpy(anchor.trust, proposal.update, back),
        tuple(per_task(anchor.trust, t) * t for t in proposal.algebra),
    )
