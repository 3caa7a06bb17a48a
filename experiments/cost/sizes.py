"""The cost of one teleport against the size of a network, in forward-backward passes on the same batch.

MLPs 784-w-...-w-10 without biases on 200 points, as in the published image experiments; the searches alone, without
the checks of ``mt.teleport``. What operation counts say for n points and P weights, of which a pass takes about 6 n P
multiplications and additions, 4 n P where the lowest layer dominates, as nothing below it is differentiated:

    gradient norm, scaling     two gradients, and O(P) per step to move one of them            2 + O(1 / n)
    gradient norm, GL          the same, with products and exponentials of w x w matrices      O(w / n)
    gradient norm, (a), (b)    second derivatives; exponentials of w x w and pseudo-inverses
                               of w x n matrices and their derivatives                         O(w / n)
    sharpness                  a gradient per direction and length, at two points              18 for one direction
    curvature                  derivatives of the action, O(P) however many points there are   O(1 / n)

for w >> n; the 784 inputs make P grow like w below and like w^2 above that width. Small networks add the time that
the interpreter takes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import exp, log
from typing import Any

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from experiments.lab.timing import Clock, Work
from meta_teleport.models import MLP
from meta_teleport.params import Params, functional, value_and_grad
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.ascent import ascend
from meta_teleport.teleportation.objectives import Curvature, Objective, Sharpness, gradient_norm

INPUTS, CLASSES, POINTS = 784, 10, 200
WIDE = 128
STEP = 0.01


@dataclass(frozen=True)
class Kind:
    """A teleport: the activation and the action of ``mlp_symmetry``, the objective, and how many steps are taken.
    ``exponent`` is what the operation counts say about large widths."""

    activation: str
    action: str
    objective: Callable[[Symmetry, Tensor], Objective]
    steps: int
    exponent: int
    options: dict[str, Any] = field(default_factory=dict)


def _norm(symmetry: Symmetry, inputs: Tensor) -> Objective:
    return gradient_norm


KINDS = {
    "gradient norm, scaling, 10 steps": Kind("leaky_relu", "scaling", _norm, 10, 0),
    "gradient norm, GL, 1 step": Kind("identity", "linear", _norm, 1, 1),
    "gradient norm, (a), 1 step": Kind("leaky_relu", "general_linear", _norm, 1, 1),
    "gradient norm, (b), 1 step": Kind("leaky_relu", "pseudo_inverse", _norm, 1, 1),
    "sharpness, scaling, 1 of 10 directions, 1 step": Kind(
        "leaky_relu", "scaling", lambda symmetry, x: Sharpness(directions=1), 1, 0, {"direction": "lower"}
    ),
    "curvature, scaling, 1 of 10 directions, 1 step": Kind(
        "leaky_relu", "scaling", lambda symmetry, x: Curvature(symmetry, directions=1), 1, 0
    ),
}


@dataclass(frozen=True)
class Subject:
    """One MLP with its batch, as data: parameters ``(1, *shape)``."""

    symmetry: Symmetry
    params: Params
    inputs: Tensor
    loss: Callable[[Params], Tensor]

    def pass_once(self) -> None:
        """One forward and one backward pass."""
        value_and_grad(self.loss, self.params)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.params.values())


def subject(kind: Kind, width: int, depth: int, device: str) -> Subject:
    """An MLP with ``depth`` hidden layers of one width."""
    model = MLP((INPUTS, *[width] * depth, CLASSES), kind.activation)
    params = {name: p.detach().unsqueeze(0).to(device) for name, p in model.named_parameters()}
    inputs = torch.randn(1, POINTS, INPUTS).to(device)
    labels = torch.randint(CLASSES, (POINTS,)).to(device)
    outputs = functional(model)

    def loss(params: Params) -> Tensor:
        return F.cross_entropy(outputs(params, inputs)[0], labels).reshape(1)

    return Subject(mlp_symmetry(model, kind.action), params, inputs, loss)


def search(kind: Kind, of: Subject) -> Callable[[], object]:
    """The search of one teleport; the pseudo-inverse of the batch is a part of it."""
    objective = kind.objective(of.symmetry, of.inputs)

    def run() -> object:
        at, settings = of.symmetry.prepare(of.inputs), {"steps": kind.steps, "size": STEP, **kind.options}
        return ascend(of.symmetry, of.params, at, of.loss, objective=objective, **settings)

    return run


def row(name: str, width: int, depth: int, clock: Clock) -> dict[str, Any]:
    """What one teleport of that name costs."""
    of = subject(KINDS[name], width, depth, clock.device)
    run = search(KINDS[name], of)
    found = clock.compare(Work(lambda: run), Work(lambda: of.pass_once))
    return {"teleport": name, "width": width, "depth": depth, "parameters": of.parameters, **found}


def sizes(widths: tuple[int, ...], depths: tuple[int, ...], width: int, clock: Clock) -> Iterator[dict[str, Any]]:
    """All teleports at all widths with two hidden layers, and at all depths at one width."""
    for name in KINDS:
        yield from ({"against": "width", **row(name, w, 2, clock)} for w in widths)
        yield from ({"against": "depth", **row(name, width, depth, clock)} for depth in depths)


def slope(x: list[float], ratios: list[float]) -> dict[str, Any]:
    """The exponent of a power law by least squares on logarithms, with the 95 % interval of Student's t; None where two
    points leave nothing to judge it by."""
    found = stats.linregress([log(v) for v in x], [log(v) for v in ratios])
    free = len(x) - 2
    reach = float(stats.t.ppf(0.975, free) * found.stderr) if free > 0 else None
    exponent = float(found.slope)
    return {
        "exponent": exponent,
        "ci95": None if reach is None else [exponent - reach, exponent + reach],
        "at": exp(float(found.intercept)),
        "points": len(x),
    }


def exponents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per teleport: the exponents of its passes in the width, over all widths and over those from ``WIDE`` on, the
    local one between the two largest, and the one in the depth."""
    fits = []
    for name, kind in KINDS.items():
        own = {axis: [r for r in rows if (r["teleport"], r["against"]) == (name, axis)] for axis in ("width", "depth")}
        wide = [r for r in own["width"] if r["width"] >= WIDE]
        fit: dict[str, Any] = {"teleport": name, "theory": kind.exponent}
        for label, chosen, axis in (
            ("width", own["width"], "width"),
            ("wide", wide, "width"),
            ("depth", own["depth"], "depth"),
        ):
            fit[label] = slope([r[axis] for r in chosen], [r["ratio"] for r in chosen]) if len(chosen) > 1 else None
        pairs = [log(b["ratio"] / a["ratio"]) / log(b["width"] / a["width"]) for a, b in pairwise(own["width"])]
        fits.append({**fit, "last": pairs[-1] if pairs else None})
    return fits
