"""What the laws are tested on: networks with data, group elements and the groups themselves.

Networks are drawn so that every layer sees both signs and every matrix that an action inverts has condition number
at most 100 (wide batches, which only negative controls use, excepted). Each case is a batch of three tasks whose
inputs have condition numbers 1, 10 and 100.
"""

from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch
from torch import Tensor

from meta_teleport.activations import ACTIVATIONS
from meta_teleport.models import MLP
from meta_teleport.params import Params
from meta_teleport.symmetry.groups import GL, Group, Orthogonal, Permutation, PositiveScaling, SignFlips
from meta_teleport.symmetry.mlp import ON_A_BATCH, THROUGH, mlp_symmetry
from meta_teleport.symmetry.symmetry import Symmetry

TASKS = 3
CONDITIONS = (1.0, 10.0, 100.0)
CANDIDATES = 200
GROUPS: tuple[Group, ...] = (GL(5), PositiveScaling(5), Orthogonal(5), Permutation(5), SignFlips(5))


@dataclass(frozen=True)
class Case:
    """One network, the action on it and how many points its batch has."""

    action: str
    activation: str
    bias: bool
    widths: tuple[int, ...]
    points: int
    group: str = "gl"
    displacement: bool = True
    condition: float = 100.0

    def __str__(self) -> str:
        form = f"-{'displacement' if self.displacement else 'plain'}" if self.action in ON_A_BATCH else ""
        widths = "x".join(map(str, self.widths))
        return f"{self.action}{form}-{self.group}-{self.activation}{'-bias' * self.bias}-{widths}-n{self.points}"

    @property
    def model(self) -> MLP:
        return MLP(self.widths, self.activation, self.bias)

    @property
    def symmetry(self) -> Symmetry:
        return mlp_symmetry(self.model, self.action, self.group, self.displacement)


@dataclass(frozen=True)
class Instance:
    """A case with numbers: params, inputs ``(tasks, n, d)`` and labels ``(tasks, n, m)``."""

    case: Case
    model: MLP
    symmetry: Symmetry
    params: Params
    inputs: Tensor
    labels: Tensor

    def select(self, index: Tensor) -> "Instance":
        params = {name: p[index] for name, p in self.params.items()}
        return replace(self, params=params, inputs=self.inputs[index], labels=self.labels[index])


def conditioned(rows: int, columns: int, conditions: Tensor, generator: torch.Generator) -> Tensor:
    """Random matrices ``(len(conditions), rows, columns)`` with these condition numbers, singular values near 1."""
    count, rank = len(conditions), min(rows, columns)
    u, _, v = torch.linalg.svd(
        torch.randn(count, rows, columns, generator=generator, dtype=torch.float64), full_matrices=False
    )
    exponents = torch.linspace(0.5, -0.5, rank, dtype=torch.float64)
    return u @ torch.diag_embed(conditions.double()[:, None] ** exponents) @ v


@cache
def build(case: Case, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Instance:
    """Numbers for a case: candidates are drawn until one per condition number is well behaved; in every precision the
    same ones.

    Nothing in the package mutates a tensor, so tests share the result.
    """
    if (dtype, device) != (torch.float64, "cpu"):
        drawn = build(case, seed)
        params = {name: p.to(device, dtype) for name, p in drawn.params.items()}
        inputs, labels = (t.to(device, dtype) for t in (drawn.inputs, drawn.labels))
        return Instance(case, case.model.to(device, dtype), drawn.symmetry, params, inputs, labels)
    generator = torch.Generator().manual_seed(seed)
    model, symmetry = case.model, case.symmetry
    chosen = [_draw(case, model, symmetry, condition, generator) for condition in CONDITIONS]
    params = {name: torch.cat([c.params[name] for c in chosen]) for name in chosen[0].params}
    inputs, labels = (torch.cat([getattr(c, n) for c in chosen]) for n in ("inputs", "labels"))
    return Instance(case, model.double(), symmetry, params, inputs, labels)


def elements(instance: Instance, seed: int = 1) -> tuple[Tensor, ...]:
    """One random element per site: GL elements with condition number up to 100 (8 in float32, or the laws would allow
    anything) where the activation's inverse does not amplify them (sinh would), else exp(T) with ``|T| = 1 / 2``."""
    generator = torch.Generator().manual_seed(seed)
    like = next(iter(instance.params.values()))
    conditions = torch.tensor([2.0, 10.0, 100.0] if like.dtype == torch.float64 else [2.0, 4.0, 8.0])
    chosen = []
    for site in instance.symmetry.sites:
        group = site.group
        tame = instance.case.activation == "asinh" and instance.case.action == "general_linear"
        if group.has_gauges and not group.is_diagonal and not tame:
            element = conditioned(group.k, group.k, conditions, generator)
        else:
            element = group.sample(TASKS, generator=generator, size=0.5 if tame else 1.0, dtype=torch.float64)
        chosen.append(element.to(like.device) if element.dtype == torch.long else element.to(like))
    return tuple(chosen)


def inverted(instance: Instance, params: Params) -> list[Tensor]:
    """The matrices whose inverses the action uses at ``params``, bottom to top."""
    columns, matrices = instance.inputs.mT, []
    for i, site in enumerate(instance.symmetry.sites):
        layer = instance.symmetry.layers[i]
        above = layer.forward(params, columns)
        if instance.case.action == "general_linear":
            matrices.append(layer.augment(columns))
        elif instance.case.action == "pseudo_inverse":
            matrices.append(site.consumer.augment(above))
        columns = above
    return matrices


def _draw(case: Case, model: MLP, symmetry: Symmetry, condition: float, generator: torch.Generator) -> Instance:
    d, m = case.widths[0], case.widths[-1]
    drawn = {
        name: torch.randn(CANDIDATES, *p.shape, generator=generator, dtype=torch.float64) / p.shape[-1] ** 0.5
        for name, p in model.named_parameters()
    }
    inputs = conditioned(case.points, d, torch.full((CANDIDATES,), condition), generator)
    labels = torch.randn(CANDIDATES, case.points, m, generator=generator, dtype=torch.float64)
    instance = Instance(case, model, symmetry, drawn, inputs, labels)
    good = torch.ones(CANDIDATES, dtype=torch.bool)
    columns = inputs.mT
    for layer in symmetry.layers:
        z = layer.augmented(drawn) @ layer.augment(columns)
        good &= (z > 0).flatten(1).any(1) & (z < 0).flatten(1).any(1)
        columns = layer.activation(z)
    for matrix in inverted(instance, drawn):
        good &= torch.linalg.cond(matrix) <= 1.5 * case.condition
    found = good.nonzero()[:1, 0]
    assert len(found) == 1, f"no candidate of {case} is well conditioned"
    return instance.select(found)


def _cases() -> list[Case]:
    both, depths = (False, True), (2, 3)
    cases = []
    for activation, bias, displacement, depth in product(("leaky_relu", "asinh", "identity"), both, both, depths):
        widths = ((6, 5, 4), (6, 7, 5, 4))[depth - 2]
        cases.append(Case("general_linear", activation, bias, widths, 4, displacement=displacement))
    for activation, bias, displacement, depth in product(ACTIVATIONS, both, both, depths):
        widths = ((4, 8, 5), (4, 7, 8, 5))[depth - 2]
        cases.append(Case("pseudo_inverse", activation, bias, widths, 3, displacement=displacement))
    exact = [("linear", "identity")]
    exact += [
        (action, name) for action, acting in THROUGH.items() for name, a in ACTIVATIONS.items() if acting.passes(a)
    ]
    for (action, activation), bias, depth in product(exact, both, depths):
        cases.append(Case(action, activation, bias, ((4, 5, 3), (4, 5, 6, 3))[depth - 2], 9))
    cases += [replace(c, group="orthogonal") for c in cases if c.action not in THROUGH and c.activation == "identity"]
    return cases


CASES = _cases()

# The plain forms keep only what the batch sees, so e.w = w needs batches that see everything: n = d for (a), n = k
# for (b), one more with biases.
IDENTITY_CASES = [c for c in CASES if c.action not in ON_A_BATCH or c.displacement]
IDENTITY_CASES += [
    Case("general_linear", activation, bias, widths, 5 + bias, displacement=False)
    for activation, bias, widths in product(
        ("leaky_relu", "asinh", "identity"), (False, True), ((5, 6, 4), (5, 5, 7, 4))
    )
]
IDENTITY_CASES += [
    Case("pseudo_inverse", activation, bias, widths, 5 + bias, displacement=False)
    for activation, bias, widths in product(("leaky_relu", "asinh", "tanh"), (False, True), ((6, 5, 4), (7, 5, 5, 4)))
]
COMPOSITION_CASES = [c for c in CASES if not (c.action == "pseudo_inverse" and c.displacement)]
EXACT_CASES = [c for c in CASES if c.action not in ON_A_BATCH]
DATA_CASES = [c for c in CASES if c.action in ON_A_BATCH]

# Negative controls.
FIRST_ORDER_CASES = [
    replace(c, group="first_order") for c in CASES if c.group == "gl" and c.action in ("general_linear", "linear")
]
NARROW_CASES = [c for c in DATA_CASES if not c.displacement]
WIDE_CASES = [replace(c, points=max(c.widths) + 3, condition=1e6) for c in DATA_CASES if c.activation != "identity"]
