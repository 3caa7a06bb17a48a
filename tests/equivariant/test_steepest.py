"""The steepest point of an orbit: known from one gradient, steepest, and where a gradient step ends quadratics."""

import math
from dataclasses import replace

import laws
import pytest
import torch
from observations import observe
from torch import Tensor

from meta_teleport.equivariant.bases import INVARIANTS, basis, invariants
from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.equivariant.steepest import NUMBERS, has_steepest_point, steepest_point, steepness
from meta_teleport.meta.estimators import mean_log_loss
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.params import Params
from meta_teleport.rules.rule import initialized
from meta_teleport.symmetry.site import Site
from meta_teleport.tasks.factorization import Factorization
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.functions import FUNCTIONS, Functions
from meta_teleport.tasks.regression import Regression

QUADRATIC = ("ellipse", "booth")
COUNT = 9


def tasks_of(name: str) -> Tasks:
    return Functions(name).sample(COUNT, torch.Generator().manual_seed(1), dtype=torch.float64)


def found(tasks: Tasks, params: Params) -> tuple[Params, Tensor]:
    """The parameters at the steepest point, and the rotation there."""
    (site,) = tasks.symmetry.sites
    rotation = steepest_point(site, params, observe(tasks, params).gradients).rotation
    return tasks.symmetry.flow(params, (rotation,)), rotation


def rotated(site: Site, params: Params, angle: Tensor) -> Params:
    generator = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    return site.act(params, site.group.exp(angle[:, None, None] * generator))


def squares(tasks: Tasks, params: Params) -> Tensor:
    return observe(tasks, params).gradients["x"].square().sum(1)


def after_a_step(tasks: Tasks, params: Params) -> Tensor:
    """The losses after ``-2 L / |G|^2 G``, relative to those before."""
    seen = observe(tasks, params)
    g = seen.gradients["x"]
    x = params["x"] - (2 * seen.loss / g.square().sum(1)).unsqueeze(1) * g
    return tasks.loss({"x": x}, seen.step) / seen.loss


@pytest.mark.parametrize("name", FUNCTIONS)
def test_steepness_along_the_orbit_is_known_from_one_gradient(name: str) -> None:
    tasks = tasks_of(name)
    (site,) = tasks.symmetry.sites
    angle = torch.linspace(-1.5, 1.5, COUNT, dtype=torch.float64)
    known = steepness(site, tasks.params, observe(tasks, tasks.params).gradients, angle)
    there = rotated(site, tasks.params, angle)
    laws.assert_close(known, squares(tasks, there), 1e-9)
    laws.must_fail(laws.assert_close, known, squares(tasks, tasks.params), 1e-2)


@pytest.mark.parametrize("name", QUADRATIC)
def test_from_the_steepest_point_of_a_quadratic_one_step_ends_at_the_minimum(name: str) -> None:
    tasks = tasks_of(name)
    there, _ = found(tasks, tasks.params)
    assert float(after_a_step(tasks, there).max()) < 1e-16
    assert float(after_a_step(tasks, tasks.params).median()) > 1e-4


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_steepest_point_is_on_the_orbit_and_no_less_steep(name: str) -> None:
    tasks = tasks_of(name)
    there, rotation = found(tasks, tasks.params)
    step = torch.zeros(COUNT).long()
    laws.assert_close(tasks.loss(there, step), tasks.loss(tasks.params, step), 1e-10)
    gain = squares(tasks, there) / squares(tasks, tasks.params)
    assert float(gain.min()) >= 1 - 1e-9 and float(gain.max()) > 1.1
    back = tasks.symmetry.flow(tasks.params, (-rotation,))
    assert float((squares(tasks, back) / squares(tasks, tasks.params)).min()) < 0.9


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_moves_with_the_coordinates_of_the_symmetry(name: str) -> None:
    """With Q h in place of h, Q orthogonal, the rotation T becomes Q T Q^T."""
    tasks = tasks_of(name)
    (site,) = tasks.symmetry.sites
    q = torch.tensor([[0.6, 0.8], [0.8, -0.6]], dtype=torch.float64)
    mirrored = replace(site, h=lambda x: site.h(x) @ q.mT, h_inverse=lambda u: site.h_inverse(u @ q))
    gradients = observe(tasks, tasks.params).gradients
    here, there = (steepest_point(s, tasks.params, gradients).rotation for s in (site, mirrored))
    laws.assert_close(there, q @ here @ q.mT, 1e-7)
    laws.must_fail(laws.assert_close, there, here, 1e-2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_its_numbers_are_the_part_of_a_quarter_turn_and_the_log_of_the_gain_up_to_five(name: str) -> None:
    tasks = tasks_of(name)
    (site,) = tasks.symmetry.sites
    there, rotation = found(tasks, tasks.params)
    numbers = steepest_point(site, tasks.params, observe(tasks, tasks.params).gradients).numbers
    quarters = rotation[:, 1, 0].abs() / (torch.pi / 2)
    laws.assert_close(numbers[:, 0], quarters, 1e-12)
    gain = squares(tasks, there) / squares(tasks, tasks.params)
    laws.assert_close(numbers[:, 1], gain.log().clamp(max=5), 1e-8, 1.0)
    assert name not in QUADRATIC or float(numbers[:, 1].max()) > 1


def test_the_second_step_of_the_search_ends_where_the_first_came_near() -> None:
    """As in Newton's method: from 1e-2 below the highest point of the orbit to 1e-4 below."""
    tasks = tasks_of("random")
    (site,) = tasks.symmetry.sites
    angles = torch.linspace(-torch.pi, torch.pi, 721, dtype=torch.float64)
    highest = torch.stack([squares(tasks, rotated(site, tasks.params, a.expand(COUNT))) for a in angles]).amax(0)
    below = 1 - squares(tasks, found(tasks, tasks.params)[0]) / highest
    near = below < 1e-2
    assert bool(near.any()) and bool((below[near] < 1e-4).all())


def test_half_of_the_largest_coefficient_leads_to_the_steepest_point() -> None:
    """So that a rule can go there, and as far again."""
    tasks = tasks_of("booth")
    with initialized(0):
        rule = Equivariant(bases=["steepest"], init_coefficients={"steepest": math.atanh(0.5)}, size=1e6).double()
    (algebra,) = rule(observe(tasks, tasks.params), rule.init(tasks.params, tasks.symmetry))[0].algebra
    laws.assert_close(algebra, found(tasks, tasks.params)[1], 1e-6)


def test_its_numbers_and_where_there_is_none() -> None:
    observation = observe(tasks_of("booth"), tasks_of("booth").params)
    plane = basis(observation.symmetry.sites[0], 0, observation, ("steepest",), 1e-6)
    assert plane.invariants.shape == (COUNT, 1, INVARIANTS + NUMBERS) and bool(plane.matrices.any())
    assert invariants(("steepest",)) == INVARIANTS + NUMBERS and invariants(("skew",)) == INVARIANTS
    networks = [
        Factorization(rank=2, inputs=6, outputs=5, points=32, batch=4),
        Regression(width=2, action="linear", activation="identity", group="orthogonal"),
        Regression(width=4, action="scaling", data="gaussian"),
    ]
    for family in networks:
        tasks = family.sample(3, torch.Generator().manual_seed(1), dtype=torch.float64)
        observation = observe(tasks, tasks.params)
        (site,) = tasks.symmetry.sites
        assert not has_steepest_point(site)
        assert not bool(basis(site, 0, observation, ("steepest",), 1e-6).matrices.any())


@pytest.mark.parametrize("apart", [True, False])
def test_a_step_teleports_or_updates(apart: bool) -> None:
    tasks = tasks_of("booth")
    with initialized(0):
        rule = Equivariant(bases=["steepest"], every=2, teleport_only_steps=apart).double()
    torch.nn.init.constant_(rule.element_head.bias, 0.5)
    state = rule.init(tasks.params, tasks.symmetry)
    for step in range(4):
        seen = observe(tasks, tasks.params, step)
        with torch.no_grad():
            proposal, state = rule(seen, state)
        teleports = bool(proposal.algebra and proposal.algebra[0].any())
        assert teleports == (step % 2 == 0)
        assert bool(proposal.update["x"].any()) == (step % 2 == 1 or not apart)


@pytest.mark.parametrize("name", QUADRATIC)
@pytest.mark.parametrize("leaf", ["element_head.bias", "update.head.bias"])
def test_meta_gradients_know_that_the_next_steepest_point_mends_what_is_left(name: str, leaf: str) -> None:
    """Near the rule that solves quadratics, by central differences. Losses fall to 1e-10 in these steps and are exact
    to 1e-11 of themselves, which over the step h of 1e-5 is 1e-6 of a derivative; its own error is h^2 / (1 - c)^2."""
    tasks = tasks_of(name)
    with initialized(0):
        rule = Equivariant(
            bases=["steepest"], init_coefficients={"steepest": 0.5}, size=8.0, every=2, teleport_only_steps=True
        ).double()
    torch.nn.init.constant_(rule.update.head.bias, 0.5)
    phi = {key: p.detach() for key, p in rule.named_parameters()}

    def value(moved: Tensor, second_order: bool = False) -> Tensor:
        carry = start(rule, tasks)
        losses, _ = unroll(rule, {**phi, leaf: moved}, tasks, carry, 6, second_order=second_order)
        return mean_log_loss(losses, carry.initial).mean(0, keepdim=True)

    def derivative(second_order: bool) -> Tensor:
        at = phi[leaf].clone().requires_grad_()
        return torch.autograd.grad(value(at, second_order), at)[0][:1]

    shift = torch.zeros_like(phi[leaf])
    shift[0] = 1e-5
    with torch.no_grad():
        wanted = (value(phi[leaf] + shift) - value(phi[leaf] - shift)) / 2e-5
    laws.assert_close(derivative(True), wanted, 1e-4)
    laws.must_fail(laws.assert_close, derivative(False), wanted, 1.0)


def test_at_the_minimum_the_steepest_point_has_a_derivative() -> None:
    tasks = tasks_of("booth")
    x = torch.tensor([[1.0, 3.0]], dtype=torch.float64).expand(COUNT, 2).clone().requires_grad_()
    (g,) = torch.autograd.grad(tasks.loss({"x": x}, torch.zeros(COUNT)).sum(), x, create_graph=True)
    assert not bool(g.any())
    (found,) = torch.autograd.grad(steepest_point(tasks.symmetry.sites[0], {"x": x}, {"x": g}).rotation.sum(), x)
    assert bool(torch.isfinite(found).all())
