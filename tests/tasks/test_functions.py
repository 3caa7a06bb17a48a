"""Two-dimensional test functions."""

import laws
import pytest
import tolerances
import torch

from meta_teleport.errors import UserError
from meta_teleport.symmetry.site import Site
from meta_teleport.tasks.functions import FUNCTIONS, Functions

NAMES = list(FUNCTIONS)
ZERO = torch.zeros(9, dtype=torch.long)


def test_the_table_is_not_empty() -> None:
    assert NAMES == ["ellipse", "rosenbrock", "booth", "random"]


@pytest.mark.parametrize("name", NAMES)
def test_h_inverse_undoes_h(name: str, generator: torch.Generator) -> None:
    tasks = Functions(name).sample(9, generator, dtype=torch.float64)
    x, f = tasks.params["x"], tasks.function
    laws.assert_close(f.h_inverse(f.h(x, tasks.data), tasks.data), x, 1e-11)
    laws.assert_close(f.h(f.h_inverse(x, tasks.data), tasks.data), x, 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_the_minimum_is_zero_where_h_is(name: str, generator: torch.Generator) -> None:
    tasks = Functions(name).sample(9, generator, dtype=torch.float64)
    lowest = tasks.function.h_inverse(torch.zeros(9, 2, dtype=torch.float64), tasks.data)
    # h, whose square the loss is, has two matrices of condition 10 and factors up to 10
    assert float(tasks.loss({"x": lowest}, ZERO).max()) < tolerances.summed(4, condition=10 * 10 * 10) ** 2
    assert float(tasks.loss(tasks.params, ZERO).min()) > 1e-3
    known = {"ellipse": (0.0, 0.0), "rosenbrock": (1.0, 1.0), "booth": (1.0, 3.0)}
    if name in known:
        laws.assert_close(lowest, torch.tensor([known[name]] * 9, dtype=torch.float64), 1e-12, scale=1.0)


def test_values_by_hand(generator: torch.Generator) -> None:
    point = {"x": torch.tensor([[2.0, -1.0]] * 9, dtype=torch.float64)}
    values = {"rosenbrock": 100 * (-1 - 4) ** 2 + 1, "booth": (2 - 2 - 7) ** 2 + (4 - 1 - 5) ** 2}
    for name, value in values.items():
        tasks = Functions(name).sample(9, generator, dtype=torch.float64)
        assert tasks.loss(point, ZERO).tolist() == pytest.approx([value] * 9)
    ellipse = Functions("ellipse").sample(9, generator, dtype=torch.float64)
    stretch = ellipse.data["stretch"]
    assert bool(((stretch >= 1) & (stretch <= 10)).all())
    laws.assert_close(ellipse.loss(point, ZERO), 4 + stretch**2, tolerances.summed(4))


def test_members_of_the_random_function_are_well_conditioned(generator: torch.Generator) -> None:
    tasks = Functions("random").sample(500, generator, dtype=torch.float64)
    for name in ("a", "c"):
        conditions = torch.linalg.cond(tasks.data[name])
        assert 5 < float(conditions.max()) <= 10 * (1 + 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_rotations_keep_the_loss_and_others_do_not(name: str, generator: torch.Generator) -> None:
    tasks = Functions(name).sample(9, generator, dtype=torch.float64)
    (site,) = tasks.symmetry.sites
    g = site.group.sample(9, generator=generator, size=2.0, dtype=torch.float64)
    before = tasks.loss(tasks.params, ZERO)
    moved = tasks.symmetry.act(tasks.params, [g])
    laws.assert_close(tasks.loss(moved, ZERO), before, 1e-10)
    assert float((moved["x"] - tasks.params["x"]).norm(dim=1).min()) > 1e-3
    laws.must_fail(laws.assert_close, tasks.loss(tasks.symmetry.act(tasks.params, [1.1 * g]), ZERO), before, 1e-3)
    laws.assert_close(tasks.symmetry.hidden(tasks.params, tasks.inputs(ZERO))[0].square().sum((1, 2)), before, 1e-12)


def test_unknown_function() -> None:
    with pytest.raises(UserError) as error:
        Functions("himmelblau")
    assert str(error.value) == "unknown function 'himmelblau': choose one of ellipse, rosenbrock, booth, random"


def test_running_means_of_gradients_are_not_moved_as_if_they_were_points() -> None:
    tasks = Functions("rosenbrock").sample(4, torch.Generator().manual_seed(0), dtype=torch.float64)
    (site,) = tasks.symmetry.sites
    means = {"x": torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}
    g = site.group.exp(torch.tensor([[0.0, -0.4], [0.4, 0.0]], dtype=torch.float64).expand(4, 2, 2))
    assert torch.equal(site.transport(means, g)["x"], means["x"])
    assert torch.equal(site.transport_squares(means, g)["x"], means["x"])
    assert not torch.allclose(Site.transport(site, means, g)["x"], means["x"])
