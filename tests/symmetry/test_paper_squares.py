"""The laws on the paper's own problems: everything 20 x 20 from U(0, 1), where inputs are badly conditioned."""

from dataclasses import replace

import laws
import pytest
import torch
from cases import Case, Instance

from meta_teleport.tasks.regression import Regression

TASKS = 8
FORMS = [(action, displacement) for action in ("general_linear", "pseudo_inverse") for displacement in (True, False)]


def instance(action: str, displacement: bool, generator: torch.Generator, points: int = 20) -> Instance:
    family = Regression(action=action, displacement=displacement, points=points, allow_drift=True)
    tasks = family.sample(TASKS, generator, dtype=torch.float64)
    case = Case(action, "leaky_relu", False, (20, 20, 20), points, displacement=displacement)
    data = tasks.data
    return Instance(case, family.model, tasks.symmetry, tasks.params, data["inputs"], data["labels"])


def element(generator: torch.Generator, like: Instance) -> list[torch.Tensor]:
    (site,) = like.symmetry.sites
    return [site.group.sample(TASKS, generator=generator, size=1.0, dtype=torch.float64)]


@pytest.mark.parametrize(("action", "displacement"), FORMS)
def test_laws_hold_to_the_formula(action: str, displacement: bool, generator: torch.Generator) -> None:
    square = instance(action, displacement, generator)
    g, h = element(generator, square), element(generator, square)
    laws.identity_moves_nothing(square)
    laws.composition(square, g, h)
    laws.invariance(square, g)
    (site,) = square.symmetry.sites
    laws.infinitesimal(square, [site.group.sample_algebra(TASKS, generator=generator, dtype=torch.float64)])
    laws.batch_is_loop(square, g)


@pytest.mark.parametrize(("action", "displacement"), FORMS)
def test_a_wide_batch_breaks_them(action: str, displacement: bool, generator: torch.Generator) -> None:
    wide = instance(action, displacement, generator, points=25)
    # as drawn every activation is positive, so the network is linear there and even a wide batch shows no drift
    wide = replace(wide, params={name: w - 0.5 for name, w in wide.params.items()})
    laws.must_fail(laws.invariance, wide, element(generator, wide), tolerance=1e-3)


def test_float32_drift_of_published_elements_is_below_one_in_ten_thousand(generator: torch.Generator) -> None:
    tasks = Regression().sample(256, generator)
    (site,) = tasks.symmetry.sites
    step = torch.zeros(256, dtype=torch.long)
    g = site.group.sample(256, generator=generator, size=0.01, dtype=torch.float32)
    moved = tasks.symmetry.act(tasks.params, [g], tasks.inputs(step))
    before, after = tasks.loss(tasks.params, step), tasks.loss(moved, step)
    assert float(((after - before).abs() / before).max()) <= 1e-4
