"""The laws, one function each: a law passes in silence or raises ``AssertionError``.

Tolerances are those of ``tolerances``, mostly ``3 n eps cond(X) cond(g)`` with n the sizes that products add up over
and X the matrices that the action inverts; errors are relative, task by task. Each law is also run on something that
breaks it, which must raise.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import tolerances
import torch
from cases import Instance, inverted
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from meta_teleport.params import Params, flatten, functional, rows
from meta_teleport.rules.rule import Observation, Rule
from meta_teleport.symmetry.groups import Group


def assert_close(actual: Tensor, expected: Tensor, tolerance: float | Tensor, scale: Tensor | float = 0.0) -> None:
    """``|actual - expected| <= tolerance max(|expected|, scale)`` in the Euclidean norm of each task."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert bool(torch.isfinite(actual).all()), "not finite"
    error = rows(actual - expected).norm(dim=1)
    size = rows(expected).norm(dim=1).clamp(min=torch.as_tensor(scale, dtype=expected.dtype).max())
    assert bool((error <= tolerance * size).all()), f"error {error.tolist()} at size {size.tolist()}, {tolerance}"


def params_close(actual: Params, expected: Params, tolerance: float | Tensor) -> None:
    """The same names, and close as one vector per task."""
    assert actual.keys() == expected.keys()
    assert_close(flatten({name: actual[name] for name in expected}), flatten(expected), tolerance)


def must_fail(law: Callable[..., None], *arguments: Any, **options: Any) -> None:
    """The negative control of a law."""
    try:
        law(*arguments, **options)
    except AssertionError:
        return
    raise AssertionError(f"{law.__name__} accepts what breaks it")


def slope_at_zero(function: Callable[[float], float], step: float = 2.0**-7, halvings: int = 10) -> tuple[float, float]:
    """The derivative at 0, and an estimate of its error, by central differences with steps h, h / 2, h / 4, ...

    Richardson's table extrapolates them to h = 0; the entry that differs least from those it is made of is neither
    spoilt by a step that is too long (kinks, curvature) nor by rounding (Ridders 1982).
    """
    best, error, above = 0.0, float("inf"), list[float]()
    for i in range(halvings + 1):
        h = step / 2**i
        row = [(function(h) - function(-h)) / (2 * h)]
        for j, coarser in enumerate(above):
            finer = row[-1]
            row.append(finer + (finer - coarser) / (4 ** (j + 1) - 1))
            apart = max(abs(row[-1] - finer), abs(row[-1] - coarser))
            if apart < error:
                best, error = row[-1], apart
        above = row
    return best, error


def spread(*elements: Tensor) -> Tensor:
    """The product of the condition numbers of elements ``(tasks, k, k)`` and diagonals ``(tasks, k)``, one
    number per task; permutations count as 1."""
    matrices = [torch.linalg.cond(g.double()) for g in elements if g.ndim == 3]
    scalings = [(g.abs().amax(1) / g.abs().amin(1)).double() for g in elements if g.ndim == 2 and g.is_floating_point()]
    return prod(matrices + scalings, start=torch.ones(len(elements[0]), dtype=torch.float64, device=elements[0].device))


def formula(instance: Instance, *moves: Sequence[Tensor]) -> Tensor:
    """``3 n eps cond(X) cond(g)`` per task, over all sites, all elements and both ends of each move; n is the sum of
    the widths and the number of points."""
    ends = [instance.params]
    for move in moves:
        ends.append(instance.symmetry.act(ends[-1], move, instance.inputs))
    conditions = [torch.linalg.cond(m.double()) for end in ends for m in inverted(instance, end)]
    g = spread(*(element for move in moves for element in move))
    x = torch.stack([torch.ones_like(g), *conditions]).amax(0)
    size = sum(instance.case.widths) + instance.case.points
    return (tolerances.solved(size, 1.0, instance.inputs.dtype) * x * g).to(instance.inputs.dtype)


def loss(instance: Instance, params: Params) -> Tensor:
    """``0.5 ||Y - f(w)||^2`` per task."""
    return 0.5 * (functional(instance.model)(params, instance.inputs) - instance.labels).square().sum((-2, -1))


def _precision(g: Tensor) -> torch.dtype:
    return g.dtype if g.is_floating_point() else torch.float64


def group_axioms(group: Group, g: Tensor, h: Tensor, k: Tensor) -> None:
    """Identity, inverse and associativity."""
    tolerance = tolerances.solved(group.k, 1.0, _precision(g)) * spread(g, h, k)
    e = group.identity(len(g), dtype=g.dtype, device=g.device).to(g)
    products = [
        (group.compose(e, g), g),
        (group.compose(g, e), g),
        (group.compose(g, group.inverse(g)), e),
        (group.compose(group.inverse(g), g), e),
        (group.compose(group.compose(g, h), k), group.compose(g, group.compose(h, k))),
    ]
    for actual, expected in products:
        assert_close(actual.double(), expected.double(), tolerance)


def exponential(group: Group, algebra: Tensor) -> None:
    """``exp(0) = e`` and ``exp(-T) exp(T) = e``."""
    e = group.identity(len(algebra), dtype=algebra.dtype, device=algebra.device)
    assert_close(group.exp(torch.zeros_like(algebra)), e, tolerances.summed(1, 1.0, algebra.dtype))
    size = float(algebra.flatten(1).norm(dim=1).max())
    rounding = tolerances.exponential(group.k, size, algebra.dtype) + tolerances.solved(group.k, 1.0, algebra.dtype)
    plus, minus = group.exp_pair(algebra)
    amplified = rounding * spread(plus).to(algebra.dtype)
    assert_close(group.exp(-algebra), group.inverse(group.exp(algebra)), amplified)
    assert_close(plus, group.exp(algebra), rounding)
    assert_close(minus, group.inverse(plus), amplified)


def matrices_act(group: Group, g: Tensor, h: Tensor, v: Tensor, u: Tensor) -> None:
    """``(gh) V = g (h V)``, ``(U h^-1) g^-1 = U (gh)^-1``, ``(U g^-1)(g V) = U V`` and ``U g^-1 = U (g^-1)``."""
    gh = group.compose(g, h)
    tolerance = tolerances.solved(group.k, 1.0, u.dtype) * spread(g, h).to(u.dtype)
    assert_close(group.apply(gh, v), group.apply(g, group.apply(h, v)), tolerance)
    assert_close(group.apply_inverse(u, gh), group.apply_inverse(group.apply_inverse(u, h), g), tolerance)
    cancelled = rows(u).norm(dim=1) * rows(v).norm(dim=1) / rows(u @ v).norm(dim=1)
    assert_close(group.apply_inverse(u, g) @ group.apply(g, v), u @ v, tolerance * cancelled)
    eye = torch.eye(group.k).to(u).expand(len(u), -1, -1)
    assert_close(group.apply_right(u, g), u @ group.apply(g, eye), tolerance)
    assert_close(group.apply_inverse(u, g), u @ group.apply(group.inverse(g), eye), tolerance)


def identity_moves_nothing(instance: Instance) -> None:
    """``e . w = w``."""
    like = instance.inputs
    identity = [s.group.identity(len(like), dtype=like.dtype, device=like.device) for s in instance.symmetry.sites]
    moved = instance.symmetry.act(instance.params, identity, instance.inputs)
    params_close(moved, instance.params, formula(instance, identity))


def composition(instance: Instance, g: Sequence[Tensor], h: Sequence[Tensor]) -> None:
    """``g . (h . w) = (g h) . w``, site by site: elements at one site, the identity at the others."""
    like, sites = instance.inputs, instance.symmetry.sites
    identity = [s.group.identity(len(like), dtype=like.dtype, device=like.device) for s in sites]
    for i, site in enumerate(sites):
        g_i, h_i, gh_i = ([*identity] for _ in range(3))
        g_i[i], h_i[i], gh_i[i] = g[i], h[i], site.group.compose(g[i], h[i])
        twice = instance.symmetry.act(instance.symmetry.act(instance.params, h_i, like), g_i, like)
        once = instance.symmetry.act(instance.params, gh_i, like)
        params_close(twice, once, formula(instance, h_i, g_i))


def invariance(
    instance: Instance, elements: Sequence[Tensor], inputs: Tensor | None = None, tolerance: float | None = None
) -> None:
    """``f(g . w) = f(w)`` on the batch (or on ``inputs``), and w has moved."""
    moved = instance.symmetry.act(instance.params, elements, instance.inputs)
    f = functional(instance.model)
    seen = instance.inputs if inputs is None else inputs
    allowed = formula(instance, elements) if tolerance is None else tolerance
    assert_close(f(moved, seen), f(instance.params, seen), allowed)
    distance = (flatten(moved) - flatten(instance.params)).norm(dim=1) / flatten(instance.params).norm(dim=1)
    assert bool((distance > 1e-2).all()), f"moved by {distance.tolist()} only"


def infinitesimal(instance: Instance, algebra: Sequence[Tensor]) -> None:
    """``d/dt L(exp(t T) . w) = 0`` at t = 0, to formula x L."""
    t = instance.inputs.new_zeros(len(instance.inputs), requires_grad=True)
    scaled = [t.reshape(-1, *[1] * (a.ndim - 1)) * a for a in algebra]
    moved = instance.symmetry.act(instance.params, instance.symmetry.exp(scaled), instance.inputs)
    value = loss(instance, moved)
    (slope,) = torch.autograd.grad(value.sum(), t)
    identity = instance.symmetry.exp([torch.zeros_like(a) for a in algebra])
    assert bool((slope.abs() <= formula(instance, identity) * value.detach()).all()), slope.tolist()


def flow_is_action(instance: Instance, algebra: Sequence[Tensor]) -> None:
    """Flowing along T is acting with ``exp(T)``."""
    symmetry, elements = instance.symmetry, instance.symmetry.exp(algebra)
    acted = symmetry.act(instance.params, elements, instance.inputs)
    params_close(symmetry.flow(instance.params, algebra, instance.inputs), acted, formula(instance, elements))


def batch_is_loop(instance: Instance, elements: Sequence[Tensor]) -> None:
    """Acting on a batch of tasks is acting on each alone."""
    together, tolerance = instance.symmetry.act(instance.params, elements, instance.inputs), formula(instance, elements)
    for i in range(len(instance.inputs)):
        one = torch.tensor([i], device=instance.inputs.device)
        alone = instance.select(one)
        moved = instance.symmetry.act(alone.params, [g[one] for g in elements], alone.inputs)
        params_close({name: p[one] for name, p in together.items()}, moved, tolerance[one])


def rule_is_loop(rule: Rule, observation: Observation, state: Any, tolerance: float = 1e-12) -> None:
    """A rule on a batch of tasks is the rule on each alone."""
    together = rule(observation, state)
    for i in range(len(observation.loss)):
        one = torch.tensor([i], device=observation.loss.device)
        alone = rule(*tree_map(lambda a, one=one: a[one] if isinstance(a, Tensor) else a, (observation, state)))
        for a, b in zip(tree_leaves(together), tree_leaves(alone), strict=True):
            if isinstance(a, Tensor) and a.is_floating_point():
                assert_close(a[one].double(), b.double(), tolerance)


def permutation_equivariance(
    propose: Callable[[Params], Params], params: Params, permute: Callable[[Params], Params]
) -> None:
    """Permuting the hidden units of a network permutes the update that a rule proposes."""
    params_close(propose(permute(params)), permute(propose(params)), 1e-10)


def memory_moves(here: Params, there: Params, transport: Callable[[Params], Params], tolerance: float = 1e-12) -> None:
    """What was measured at g.w (gradients, sums of them or of their squares, by parameter) is the image of what was
    measured at w."""
    moved = transport(here)
    assert moved.keys() == there.keys() and there
    for name, expected in there.items():
        assert_close(moved[name].unsqueeze(0), expected.unsqueeze(0), tolerance)


def same_bits(actual: Any, expected: Any) -> None:
    """Two trees of tensors and plain values are bitwise the same."""
    one, other = tree_leaves(actual), tree_leaves(expected)
    assert len(one) == len(other) and one
    for a, b in zip(one, other, strict=True):
        equal = torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        assert equal, f"{a} is not {b}"
