"""Controls: what has to be ruled out before a gain is called learned.

<label>/identity      the same rule, its elements replaced by the identity
<label>/random        the same rule, its elements replaced by random ones of the same norm, per task and site
whitening             the hand-written teleporter, without meta-parameters
last-layer-solve      the last layer of an MLP solved by least squares, once, and nothing else
"""

import torch
from torch import Tensor

from meta_teleport.evaluation.methods import Interventions, Method
from meta_teleport.params import Params
from meta_teleport.rules.classical import Whitening
from meta_teleport.rules.rule import Rule
from meta_teleport.rules.wrappers import RandomElements, Still, WithoutElements
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.regression import RegressionTasks


def element_controls(rule: Rule, label: str, generator: torch.Generator) -> list[Method]:
    """The controls of a rule that proposes elements."""
    return [
        Method(f"{label}/identity", "control", WithoutElements(rule), {"elements": "identity"}),
        Method(f"{label}/random", "control", RandomElements(rule, generator), {"elements": "random"}),
    ]


def closed_form_controls(tasks: Tasks) -> list[Method]:
    """The controls without meta-parameters that exist for these tasks: none for a network that is not a chain."""
    methods = []
    if tasks.symmetry.layers and all(site.group.has_gauges for site in tasks.orbit.sites):
        methods.append(Method("whitening", "control", Whitening(), {"step": "1 / lambda_max"}))
    if isinstance(tasks, RegressionTasks) and tasks.symmetry.layers:
        interventions = Interventions((0,), solve_last_layer, teleports=False)
        methods.append(Method("last-layer-solve", "control", Still(), {"solved": "once, on all points"}, interventions))
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
