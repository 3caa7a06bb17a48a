"""Rollback: whatever a rule proposes, the anchor's loss never rises."""

import laws
import pytest
import torch
from torch import Tensor

from meta_teleport.learned.lstm import LSTMRule, LSTMState
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.rules.rollback import Anchor, move_anchor, no_anchor
from meta_teleport.rules.rule import Observation, Proposal, shapes_of
from meta_teleport.tasks.regression import Regression

FAMILY = Regression(width=4, data="gaussian")


class Scaled(LSTMRule):
    """Proposes ``factor`` times the gradient, and an element: uphill for a positive factor."""

    factor = 0.0

    def propose(self, observation: Observation, state: LSTMState) -> tuple[Proposal, LSTMState]:
        update = {name: self.factor * g for name, g in observation.gradients.items()}
        return Proposal(update, (0.1 * torch.ones(observation.loss.shape[0], 4, 4).double(),)), state


def run(factor: float, safeguard: bool, steps: int, generator: torch.Generator) -> tuple[Tensor, list[Anchor], Tensor]:
    tasks = FAMILY.sample(6, generator, dtype=torch.float64)
    rule = Scaled(shapes_of(tasks.params, tasks.symmetry), safeguard=safeguard)
    rule.factor = factor
    carry, losses, anchors = start(rule, tasks), [], []
    initial = carry.initial
    with torch.no_grad():
        for _ in range(steps):
            loss, carry = unroll(rule, {}, tasks, carry, 1)
            losses.append(loss[0])
            if safeguard:
                anchors.append(carry.state.anchor)
    return torch.stack(losses), anchors, initial


@pytest.mark.parametrize("factor", [0.01, 1.0, -1.0])
def test_the_anchor_never_rises_under_harmful_proposals(factor: float, generator: torch.Generator) -> None:
    losses, anchors, initial = run(factor, True, 60, generator)
    heights = torch.stack([a.loss for a in anchors])
    assert bool((heights.diff(dim=0) <= 0).all())
    assert bool((heights <= initial).all())
    assert bool(torch.isfinite(losses).all())
    assert bool((losses[-1] <= 1.001 * initial).all())
    trust = torch.stack([a.trust for a in anchors])
    assert bool((trust[0] == 1).all())
    assert bool((trust.amin(0) < 0.1).all())


def test_trust_halves_on_a_failure_and_grows_by_a_quarter_on_a_success(generator: torch.Generator) -> None:
    _, anchors, _ = run(1.0, True, 3, generator)
    assert [float(a.trust[0]) for a in anchors] == [1.0, 0.5, 0.25]
    _, anchors, _ = run(-1e-4, True, 5, generator)
    assert [float(a.trust[0]) for a in anchors] == [1.0] * 5


def test_trust_that_was_halved_twice_comes_back_by_quarters_up_to_one() -> None:
    params = {"w": torch.ones(1, 1, dtype=torch.float64)}
    anchor, trust = no_anchor(params), []
    for loss in (5.0, 6.0, 6.0, *(4.0,) * 8):
        seen = Observation(params, params, torch.tensor([loss], dtype=torch.float64), torch.zeros(1))
        anchor = move_anchor(seen, anchor)
        trust.append(float(anchor.trust))
    assert trust == [1.0, 1 / 2, 1 / 4, *(min(5**n / 4 ** (n + 1), 1.0) for n in range(1, 9))]


def test_without_it_the_same_proposals_diverge(generator: torch.Generator) -> None:
    losses, _, initial = run(1.0, False, 5, generator)
    assert bool((losses[-1] > 10 * initial).all())


def test_helpful_proposals_pass_unchanged(generator: torch.Generator) -> None:
    state = generator.get_state()
    guarded, _, _ = run(-1e-3, True, 10, generator)
    generator.set_state(state)
    free, _, _ = run(-1e-3, False, 10, generator)
    laws.assert_close(guarded, free, 1e-12)
