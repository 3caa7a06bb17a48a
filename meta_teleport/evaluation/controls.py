"""Controls: what has to be ruled out before a gain is called learned.

<label>/identity      the same rule, its elements replaced by the identity
<label>/random        the same rule, its elements replaced by random ones of the same norm, per task and site
whitening             the hand-written teleporter, without meta-parameters
last-layer-solve      the last layer of an MLP solved by least squares, once, and nothing else
"""

from typing import Any

import torch
from torch import Tensor

from meta_teleport.evaluation.methods import Jumps, Method
from meta_teleport.params import Params, per_task
from meta_teleport.rules.classical import NoState, Whitening
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.symmetry.random_algebra import random_algebra
from meta_teleport.symmetry.symmetry import Element, Symmetry
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.regression import RegressionTasks


class WithoutElements(Rule):
    """The updates of ``rule`` alone: every element it proposes is replaced by the identity."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule, self.horizon = rule, getattr(rule, "horizon", None)
        self.observes_hidden, self.observes_grams = rule.observes_hidden, rule.observes_grams
        self.backtracking = rule.backtracking

    def init(self, params: Params, symmetry: Symmetry) -> Any:
        return self.rule.init(params, symmetry)

    def forward(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
        proposal, state = self.rule(observation, state)
        return Proposal(proposal.update), state


class RandomElements(Rule):
    """The updates of ``rule`` with random elements in place of its own: task by task and site by site the same
    Frobenius norm of the algebra coordinates, in directions drawn uniformly from ``generator``."""

    def __init__(self, rule: Rule, generator: torch.Generator) -> None:
        super().__init__()
        self.rule, self.horizon = rule, getattr(rule, "horizon", None)
        self.observes_hidden, self.observes_grams = rule.observes_hidden, rule.observes_grams
        self.backtracking = rule.backtracking
        self.generator = generator

    def init(self, params: Params, symmetry: Symmetry) -> Any:
        return self.rule.init(params, symmetry)

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


def element_controls(rule: Rule, label: str, generator: torch.Generator) -> list[Method]:
    """The controls of a rule that proposes elements."""
    return [
        Method(f"{label}/identity", "control", WithoutElements(rule), {"elements": "identity"}),
        Method(f"{label}/random", "control", RandomElements(rule, generator), {"elements": "random"}),
    ]


def closed_form_controls(tasks: Tasks) -> list[Method]:
    """The controls without meta-parameters that exist for these tasks: none for a network that is not a chain."""
    methods = []
    if tasks.symmetry.layers and all(site.group.has_gauges for site in tasks.symmetry.sites):
        methods.append(Method("whitening", "control", Whitening(), {"step": "1 / lambda_max"}))
    if isinstance(tasks, RegressionTasks) and tasks.symmetry.layers:
        jumps = Jumps((0,), solve_last_layer, teleports=False)
        methods.append(Method("last-layer-solve", "control", Still(), {"solved": "once, on all points"}, jumps))
    return methods


def solve_last_layer(tasks: Tasks, params: Params, step: Tensor) -> Params:
    """The parameters with the last layer that minimises ``||Y - U h - b||^2`` over all points of each task.

    The solution of smallest norm, in float64; singular values of h below the precision of the parameters count as
    zero. ``step`` has no influence.
    """
    symmetry = tasks.symmetry
    wide = {name: tensor.double() for name, tensor in params.items()}
    h = symmetry.hidden(wide, tasks.data["inputs"].double())[-1]
    names = list(params)
    weight, *bias = names[names.index(symmetry.layers[-1].names[-1]) + 1 :]
    if bias:
        h = torch.cat([h, torch.ones_like(h[..., :1, :])], dim=-2)
    precision = torch.finfo(params[weight].dtype).eps
    solved = tasks.data["labels"].double().mT @ torch.linalg.pinv(h, rtol=precision)
    split = solved.split([h.shape[-2] - len(bias), len(bias)], dim=-1)
    moved = {weight: split[0]} | {name: split[1].squeeze(-1) for name in bias}
    return {**params, **{name: tensor.to(params[name]) for name, tensor in moved.items()}}
