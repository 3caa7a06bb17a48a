"""Rules around other rules, and the rule that does nothing: what takes a part away, to see what it was worth."""

from typing import Any

import torch

from meta_teleport.params import Params, per_task
from meta_teleport.rules.classical import NoState
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.symmetry.random_algebra import random_algebra
from meta_teleport.symmetry.symmetry import Element, Symmetry


class WithoutElements(Rule):
    """The updates of ``rule`` alone: every element it proposes is replaced by the identity."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule, self.horizon, self.backtracking = rule, rule.horizon, rule.backtracking
        self.observes_hidden, self.observes_grams = rule.observes_hidden, rule.observes_grams
        self.nonnegative_losses = rule.nonnegative_losses

    def init(self, params: Params, symmetry: Symmetry) -> Any:
        return self.rule.init(params, symmetry)

    def forward(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
        proposal, state = self.rule(observation, state)
        return Proposal(proposal.update), state


class RandomElements(WithoutElements):
    """The updates of ``rule`` with random elements in place of its own: task by task and site by site the same
    Frobenius norm of the algebra coordinates, in directions drawn uniformly from ``generator``."""

    def __init__(self, rule: Rule, generator: torch.Generator) -> None:
        super().__init__(rule)
        self.generator = generator

    def forward(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
        proposal, state = self.rule(observation, state)
        if not proposal.algebra:
            return proposal, state
        groups = tuple(site.group for site in observation.symmetry.sites)
        wanted = tuple(g.tangent(t) for g, t in zip(groups, proposal.algebra, strict=True))
        drawn = random_algebra(tuple(torch.ones_like(t) for t in wanted), self.generator)
        drawn = tuple(g.tangent(t) for g, t in zip(groups, drawn, strict=True))
        sizes = (t.flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1) for t, d in zip(wanted, drawn, strict=True))
        return Proposal(proposal.update, tuple(per_task(s, d) * d for s, d in zip(sizes, drawn, strict=True))), state

    def transport(self, state: Any, symmetry: Symmetry, elements: tuple[Element, ...]) -> Any:
        return self.rule.transport(state, symmetry, elements)


class Still(Rule):
    """No update at all."""

    def init(self, params: Params, symmetry: Symmetry) -> NoState:
        return NoState()

    def forward(self, observation: Observation, state: NoState) -> tuple[Proposal, NoState]:
        return Proposal({name: torch.zeros_like(tensor) for name, tensor in observation.gradients.items()}), state
