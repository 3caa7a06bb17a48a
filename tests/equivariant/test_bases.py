"""The units of what a learned teleport reads and is made of at a site."""

from math import e, log

import laws
import pytest
import torch
from observations import observe

from meta_teleport.equivariant.bases import GRAMS, basis
from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.rules.rule import initialized
from meta_teleport.tasks.regression import Regression


@pytest.mark.parametrize(("square", "counts_as"), [(1.1e-3, 1.1e-3), (0.9e-3, 1e-3), (0.0, 1e-3)])
def test_under_scalings_a_unit_counts_as_a_thousandth_of_the_mean_at_least(square: float, counts_as: float) -> None:
    """The squared norms of what four units read have mean 1; the first's is given."""
    family = Regression(width=4, action="scaling", data="gaussian")
    tasks = family.sample(2, torch.Generator().manual_seed(1), dtype=torch.float64)
    squares = torch.tensor([square, 2 - square, 1.0, 1.0], dtype=torch.float64)
    name = tasks.symmetry.sites[0].producers[0].name
    weight = tasks.params[name] / tasks.params[name].norm(dim=2, keepdim=True) * squares.sqrt().unsqueeze(1)
    seen = observe(tasks, {**tasks.params, name: weight})
    found = basis(tasks.symmetry.sites[0], 0, seen, ("incoming",), 1e-6).matrices[:, 0, :, 0]
    laws.assert_close(found[:, 0], torch.full((2,), log(counts_as), dtype=torch.float64), 1e-12)


def test_ratios_of_weights_and_of_gradients_and_eigenvalues_are_read_in_factors_of_e_to_the_tenth() -> None:
    family = Regression(width=4, action="linear", activation="identity", points=9)
    tasks = family.sample(2, torch.Generator().manual_seed(1), dtype=torch.float64)
    (site,), seen = tasks.symmetry.sites, observe(tasks, tasks.params)
    below, above = (views[0].name for views in (site.producers, site.consumers))

    def read(weight: float, gradient: float) -> torch.Tensor:
        params = {below: weight * seen.params[below], above: seen.params[above]}
        gradients = {below: gradient * seen.gradients[below], above: seen.gradients[above]}
        shown = seen._replace(params=params, gradients=gradients)
        return basis(site, 0, shown, GRAMS, 1e-6).invariants[:, 0, 2 * len(GRAMS) : 2 * len(GRAMS) + 2]

    change = read(e**10, e**-20) - read(1.0, 1.0)
    laws.assert_close(change, torch.tensor([[1.0, -2.0]], dtype=torch.float64).expand(2, 2), 1e-10)
    line = torch.zeros_like(seen.params[below])
    line[:, 0] = 1.0  # one eigenvalue is four times the mean, the others count as the floor
    numbers = basis(site, 0, observe(tasks, {**seen.params, below: line}), ("incoming",), e**-10).invariants[:, 0, 2:4]
    expected = torch.tensor([[log(4) / 10, (log(4) / 10 - 3) / 4]], dtype=torch.float64)
    laws.assert_close(numbers, expected.expand(2, 2), 1e-10)


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("size", [1e-3, 0.5, 100.0])
def test_the_bound_of_an_element_is_that_of_its_rows_whatever_their_number(k: int, size: float) -> None:
    """Of the identity the largest coefficient is 1/2, which a bound s makes ``s / 2 / sqrt(s^2 + 1 / 4)``."""
    family = Regression(width=k, action="linear", activation="identity", points=9)
    tasks = family.sample(2, torch.Generator().manual_seed(1), dtype=torch.float64)
    with initialized(0):
        rule = Equivariant(bases=["identity"], init_coefficients={"identity": 50.0}, size=size).double()
    (t,) = rule(observe(tasks, tasks.params), rule.init(tasks.params, tasks.symmetry))[0].algebra
    expected = size / 2 / (size**2 + 1 / 4) ** 0.5 * torch.eye(k, dtype=torch.float64)
    laws.assert_close(t, expected.expand(2, k, k), 1e-12)
