"""Velocity, acceleration and curvature of curves on an orbit."""

import laws
import pytest
import torch
from cases import Case, Instance, build
from torch import Tensor

from meta_teleport.params import Params, dot, per_task
from meta_teleport.symmetry.groups import GL, FirstOrder, Group, Orthogonal, PositiveScaling
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.teleportation.curvature import kappa, unit_algebra, velocity_and_acceleration

DATA_DEPENDENT = [
    Case("general_linear", "leaky_relu", False, (6, 7, 5, 4), 4),
    Case("general_linear", "leaky_relu", True, (6, 7, 5, 4), 4),
    Case("general_linear", "leaky_relu", False, (6, 4, 5, 4), 4),
]
EXACT = [
    Case("linear", "identity", True, (4, 5, 6, 3), 9),
    Case("scaling", "relu", False, (4, 5, 6, 3), 9),
    Case("scaling", "leaky_relu", True, (4, 5, 6, 3), 9),
]
BY_DIFFERENCES = [
    Case("general_linear", "asinh", True, (6, 7, 5, 4), 4),
    Case("pseudo_inverse", "tanh", False, (4, 7, 8, 5), 3),
    Case("linear", "identity", False, (4, 5, 6, 3), 9, group="orthogonal"),
]


def test_there_are_cases() -> None:
    assert len(DATA_DEPENDENT) == len(EXACT) == len(BY_DIFFERENCES) == 3


def drawn(instance: Instance, sites: tuple[str, ...] | None = None) -> list[Tensor]:
    return unit_algebra(instance.symmetry, sites, instance.inputs, torch.Generator().manual_seed(5))


def matrices(instance: Instance, algebra: list[Tensor]) -> list[Tensor]:
    """For each layer the matrix that moves its units: M of its site, and zero for the last layer."""
    last = instance.labels
    ms = [torch.diag_embed(m) if m.ndim == 2 else m for m in algebra]
    return [*ms, last.new_zeros(len(last), last.shape[-1], last.shape[-1])]


def by_hand(instance: Instance, algebra: list[Tensor], cross: bool = True) -> tuple[Params, Params]:
    """The closed forms of the module's docstring, with or without the cross terms between neighbours."""
    velocity: Params = {}
    acceleration: Params = {}
    below = instance.inputs.new_zeros(3, instance.inputs.shape[-1], instance.inputs.shape[-1])
    columns = instance.inputs.mT
    for i, m in enumerate(matrices(instance, algebra)):
        name, bias = f"layers.{i}.weight", f"layers.{i}.bias"
        w = instance.params[name]
        if instance.case.bias:
            w = torch.cat([w, instance.params[bias].unsqueeze(-1)], -1)
            below = torch.nn.functional.pad(below, (0, 1, 0, 1))
            columns = torch.cat([columns, torch.ones_like(columns[:, :1])], 1)
        z = w @ columns
        h = instance.model.activation(z)
        if instance.case.action == "general_linear":
            slope = torch.where(z > 0, 1.0, torch.full_like(z, 0.1))
            inverse = torch.linalg.pinv(columns)
            seen = columns @ inverse
            turned = inverse @ (below.mT @ (torch.eye(len(seen[0])) - seen) - below @ seen)
            first, second = (m @ h / slope) @ inverse, (m @ m @ h / slope) @ inverse
            meeting = 2 * (m @ h / slope) @ turned
        else:
            first, second, meeting = m @ w, m @ m @ w, -2 * m @ w @ below
        ws = (first - w @ below, second + w @ below @ below + (meeting if cross else 0))
        for derivative, moved in zip((velocity, acceleration), ws, strict=True):
            derivative[name] = moved[..., :-1] if instance.case.bias else moved
            if instance.case.bias and i < len(algebra):
                derivative[bias] = moved[..., -1]
        below, columns = m, h
    return velocity, acceleration


@pytest.mark.parametrize("case", DATA_DEPENDENT + EXACT, ids=str)
def test_derivatives_equal_the_closed_forms(case: Case) -> None:
    instance = build(case)
    algebra = drawn(instance)
    velocity, acceleration = velocity_and_acceleration(instance.symmetry, algebra, instance.inputs, instance.params)
    expected = by_hand(instance, algebra)
    laws.params_close(velocity, expected[0], 1e-8)
    laws.params_close(acceleration, expected[1], 1e-8)
    alone = by_hand(instance, algebra, cross=False)
    laws.params_close(velocity, alone[0], 1e-8)
    laws.must_fail(laws.params_close, acceleration, alone[1], 1e-2)


@pytest.mark.parametrize("case", DATA_DEPENDENT + EXACT, ids=str)
def test_one_site_has_no_cross_terms(case: Case) -> None:
    instance = build(case)
    for site in instance.symmetry.sites:
        algebra = drawn(instance, (site.name,))
        _, acceleration = velocity_and_acceleration(instance.symmetry, algebra, instance.inputs, instance.params)
        laws.params_close(acceleration, by_hand(instance, algebra, cross=False)[1], 1e-8)


@pytest.mark.parametrize("case", DATA_DEPENDENT + EXACT, ids=str)
def test_kappa_is_its_formula(case: Case) -> None:
    instance = build(case)
    algebra = drawn(instance)
    velocity, acceleration = by_hand(instance, algebra)
    speed, size, inner = dot(velocity, velocity), dot(acceleration, acceleration), dot(velocity, acceleration)
    expected = (speed * size - inner**2).sqrt() / speed**1.5
    laws.assert_close(kappa(instance.symmetry, algebra, instance.inputs, instance.params), expected, 1e-8)
    _, incomplete = by_hand(instance, algebra, cross=False)
    size, inner = dot(incomplete, incomplete), dot(velocity, incomplete)
    without = (speed * size - inner**2).sqrt() / speed**1.5
    laws.must_fail(laws.assert_close, without, expected, 1e-3)


def difference_quotients(
    symmetry: Symmetry, algebra: list[Tensor], inputs: Tensor | None, params: Params, times: Tensor | float = 0.0
) -> tuple[Params, Params]:
    """Velocity and acceleration of exp(t M) . w by central differences of order 4, where the curve is smooth."""
    h = 5e-4
    at = {
        i: symmetry.act(params, symmetry.exp([per_task(times + i * h, m) * m for m in algebra]), inputs)
        for i in (-2, -1, 0, 1, 2)
    }
    names = {name for site in symmetry.sites for name in site.parameters}
    first = {n: (at[-2][n] - 8 * at[-1][n] + 8 * at[1][n] - at[2][n]) / (12 * h) for n in names}
    second = {n: (-at[-2][n] + 16 * at[-1][n] - 30 * at[0][n] + 16 * at[1][n] - at[2][n]) / (12 * h * h) for n in names}
    return first, second


@pytest.mark.parametrize("case", EXACT + BY_DIFFERENCES, ids=str)
def test_derivatives_equal_difference_quotients(case: Case) -> None:
    instance = build(case)
    algebra = drawn(instance)
    ours = velocity_and_acceleration(instance.symmetry, algebra, instance.inputs, instance.params)
    expected = difference_quotients(instance.symmetry, algebra, instance.inputs, instance.params)
    laws.params_close(ours[0], expected[0], 1e-6)
    laws.params_close(ours[1], expected[1], 1e-5)
    laws.must_fail(laws.params_close, ours[0], expected[1], 1e-2)


@pytest.mark.parametrize("points", [3, 12], ids=["narrow", "wide"])
def test_derivatives_later_on_the_same_curve(points: int) -> None:
    """At a time of its own for every task; on wide batches, where the action does not compose, that is not the start of
    the curve from there."""
    instance = build(Case("pseudo_inverse", "tanh", False, (8, 6, 5, 4), points, displacement=False, condition=1e3))
    algebra = drawn(instance)
    times = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    point = instance.symmetry.flow(instance.params, [times[:, None, None] * m for m in algebra], instance.inputs)
    along = velocity_and_acceleration(instance.symmetry, algebra, instance.inputs, instance.params, times)
    expected = difference_quotients(instance.symmetry, algebra, instance.inputs, instance.params, times)
    laws.params_close(along[0], expected[0], 1e-6)
    laws.params_close(along[1], expected[1], 1e-5)
    again = velocity_and_acceleration(instance.symmetry, algebra, instance.inputs, point)
    for there, restarted in zip(along, again, strict=True):
        if points == 3:
            laws.params_close(restarted, there, 1e-8)
        else:
            laws.must_fail(laws.params_close, restarted, there, 1e-3)


@pytest.mark.parametrize("group", [GL(3, (2,)), PositiveScaling(3, (2,))], ids=["gl", "scaling"])
def test_blocks_of_a_group(group: Group, generator: torch.Generator) -> None:
    """Two heads of three units in one packed weight, beside numbers that nothing moves."""
    packed = View("packed", 2, (2, 3, 5), units=(1,), blocks=(0,), part=(0, 4, 6))
    out = View("out", 2, (7, 2, 3), units=(2,), blocks=(1,))
    symmetry = Symmetry((Site("heads", group, (packed,), (out,)),))
    params = {
        name: torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        for name, shape in (("packed", (10, 5)), ("out", (7, 6)), ("other", (3,)))
    }
    algebra = unit_algebra(symmetry, None, params["out"], generator)
    ours = velocity_and_acceleration(symmetry, algebra, None, params)
    expected = difference_quotients(symmetry, algebra, None, params)
    assert ours[0].keys() == {"packed", "out"}
    laws.params_close(ours[0], expected[0], 1e-6)
    laws.params_close(ours[1], expected[1], 1e-5)
    assert not ours[1]["packed"][:, :4].any() and bool((ours[1]["packed"][:, 4:] != 0).all())


def plane(group: Group, producers: tuple[str, ...], consumers: tuple[str, ...]) -> Symmetry:
    """A site on vectors of the group's size."""
    views = [tuple(View.along(name, (group.k,), 0) for name in names) for names in (producers, consumers)]
    return Symmetry((Site("plane", group, *views),))


def test_curvature_of_a_circle(generator: torch.Generator) -> None:
    symmetry = plane(Orthogonal(2), ("w",), ())
    params = {"w": torch.randn(6, 2, generator=generator, dtype=torch.float64)}
    algebra = unit_algebra(symmetry, None, params["w"], generator)
    found = kappa(symmetry, algebra, None, params)
    laws.assert_close(found, 1 / params["w"].norm(dim=1), 1e-12)
    laws.must_fail(laws.assert_close, found, params["w"].norm(dim=1), 1e-2)


def test_curvature_of_a_hyperbola(generator: torch.Generator) -> None:
    """(v, u) -> (v s, u / s) moves on u v = constant."""
    symmetry = plane(PositiveScaling(1), ("v",), ("u",))
    params = {n: torch.randn(6, 1, generator=generator, dtype=torch.float64) for n in ("v", "u")}
    algebra = unit_algebra(symmetry, None, params["u"], generator)
    v, u = params["v"].squeeze(1), params["u"].squeeze(1)
    expected = 2 * (u * v).abs() / (u**2 + v**2) ** 1.5
    found = kappa(symmetry, algebra, None, params)
    laws.assert_close(found, expected, 1e-12)
    laws.assert_close(kappa(symmetry, [3 * m for m in algebra], None, params), expected, 1e-12)
    laws.must_fail(laws.assert_close, found, expected / 2, 1e-2)


@pytest.mark.parametrize("still", [True, False])
def test_lines_and_points_have_no_curvature(still: bool, generator: torch.Generator) -> None:
    """First-order elements I + T move on a line; nothing moves zero. The gradient is finite there."""
    symmetry = plane(GL(3), ("v",), ("u",)) if still else plane(FirstOrder(3), ("v",), ("u",))
    drawn = {n: torch.randn(2, 3, generator=generator, dtype=torch.float64) for n in ("v", "u")}
    params = {n: (0 * p if still else p).requires_grad_() for n, p in drawn.items()}
    algebra = unit_algebra(symmetry, None, params["u"], generator)
    found = kappa(symmetry, algebra, None, params)
    gradients = torch.autograd.grad(found.sum(), list(params.values()), allow_unused=True, materialize_grads=True)
    assert not found.any() and not any(g.any() for g in gradients)
    constant = velocity_and_acceleration(symmetry, algebra, None, {n: p.detach() for n, p in params.items()})
    assert not dot(constant[1], constant[1]).any() and bool((dot(constant[0], constant[0]) > 0).all()) != still


def test_random_elements_have_norm_one_over_the_chosen_sites(generator: torch.Generator) -> None:
    symmetry = build(DATA_DEPENDENT[0]).symmetry
    like = torch.zeros(3, 2, dtype=torch.float32)
    both = unit_algebra(symmetry, None, like, generator)
    one = unit_algebra(symmetry, (symmetry.sites[1].name,), like, generator)
    assert [m.shape for m in both] == [(3, 7, 7), (3, 5, 5)] and all(m.dtype == torch.float32 for m in both)
    for algebra in (both, one):
        assert torch.allclose(sum(m.square().flatten(1).sum(1) for m in algebra), torch.ones(3))
        assert all(torch.equal(m, m[:1].expand_as(m)) for m in algebra)
    assert bool(both[0].any() and both[1].any() and one[1].any()) and not one[0].any()
