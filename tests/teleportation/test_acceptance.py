"""Teleports that rounding would spoil are carried out as far as it does not, task by task, from the lowest site up."""

from dataclasses import replace
from functools import partial

import laws
import pytest
import torch

from meta_teleport.params import Params
from meta_teleport.symmetry.groups import GL
from meta_teleport.symmetry.symmetry import Element
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.regression import Regression
from meta_teleport.teleportation.acceptance import (
    LIMIT,
    Limits,
    ceiling_of,
    is_finite,
    is_safe,
    is_usable,
    loss_drift,
    move_safely,
    only,
    rounding,
)

STEP = torch.zeros(4, dtype=torch.long)


def nearly_dependent(tasks: Tasks, task: int) -> Tasks:
    """The same tasks, but the activations that the second site's producer reads are dependent up to 1e-14."""
    weight = tasks.params["layers.0.weight"].clone()
    weight[task, 1:] = weight[task, :1] * torch.tensor([[1.0], [-2.0], [0.5]]) + 1e-14 * weight[task, 1:]
    return replace(tasks, params={**tasks.params, "layers.0.weight": weight})


def sample(generator: torch.Generator) -> tuple[Tasks, tuple[Element, ...]]:
    """Four tasks with three sites, the second of them with such activations, and elements for all."""
    family = Regression(width=4, depth=4, data="gaussian", activation="asinh")
    tasks = nearly_dependent(family.sample(4, generator, dtype=torch.float64), 1)
    algebra = [
        site.group.sample_algebra(4, generator=generator, size=0.5, dtype=torch.float64)
        for site in tasks.symmetry.sites
    ]
    return tasks, tasks.symmetry.exp_pairs(algebra)


def moved(tasks: Tasks, elements: tuple[Element, ...]) -> tuple[Params, tuple[Element, ...], torch.Tensor]:
    loss = partial(tasks.loss, step=STEP)
    return move_safely(tasks.symmetry, tasks.params, elements, tasks.inputs(STEP), loss)


def test_sites_above_which_the_loss_drifts_are_left_out_for_that_task_alone(generator: torch.Generator) -> None:
    tasks, elements = sample(generator)
    before = tasks.loss(tasks.params, STEP)
    everything = tasks.symmetry.move(tasks.params, elements, tasks.inputs(STEP))
    drift = loss_drift(before, tasks.loss(everything, STEP))
    assert drift[1] > LIMIT and drift[[0, 2, 3]].max() < 1e-12
    params, acting, stopped = moved(tasks, elements)
    assert stopped.tolist() == [False, True, False, False]
    assert loss_drift(before, tasks.loss(params, STEP)).max() <= LIMIT
    lowest = tuple(
        (pair if i == 0 else (torch.eye(4, dtype=torch.float64).expand(4, 4, 4),) * 2)
        for i, pair in enumerate(elements)
    )
    alone = tasks.symmetry.move(tasks.params, lowest, tasks.inputs(STEP))
    laws.params_close({n: p[1] for n, p in params.items()}, {n: p[1] for n, p in alone.items()}, 1e-12)
    assert all(torch.equal(params[n][[0, 2, 3]], everything[n][[0, 2, 3]]) for n in params)
    for site, ((g, inverse), (asked, _)) in enumerate(zip(acting, elements, strict=True)):
        assert torch.equal(g[[0, 2, 3]], asked[[0, 2, 3]])
        assert torch.equal(g[1], asked[1] if site == 0 else torch.eye(4, dtype=torch.float64))
        laws.assert_close(g @ inverse, torch.eye(4, dtype=torch.float64).expand(4, 4, 4), 1e-12)


def test_a_teleport_that_is_safe_is_carried_out_as_it_is(generator: torch.Generator) -> None:
    tasks, elements = sample(generator)
    good = torch.tensor([0, 2, 3])
    tasks, elements = tasks.select(good), tuple((g[good], inverse[good]) for g, inverse in elements)
    step = STEP[good]
    calls = []

    def loss(params: Params) -> torch.Tensor:
        calls.append(params)
        return tasks.loss(params, step)

    params, acting, stopped = move_safely(tasks.symmetry, tasks.params, elements, tasks.inputs(step), loss)
    whole = tasks.symmetry.move(tasks.params, elements, tasks.inputs(step))
    assert acting is elements and not stopped.any() and len(calls) == 2
    assert all(torch.equal(params[n], p) for n, p in whole.items())


@pytest.mark.parametrize("bad", [1e30, float("nan")])
def test_where_no_site_can_move_the_task_stays_bitwise(bad: float, generator: torch.Generator) -> None:
    tasks, elements = sample(generator)
    spoilt = tuple(
        (torch.where(STEP[:, None, None] + torch.arange(4)[:, None, None] == 2, bad * g, g), i) for g, i in elements
    )
    params, acting, stopped = moved(tasks, spoilt)
    assert stopped.tolist() == [False, True, True, False]
    assert all(torch.equal(params[n][2], p[2]) for n, p in tasks.params.items())
    assert all(torch.equal(g[2], torch.eye(4, dtype=torch.float64)) for g, _ in acting)


def test_losses_may_drift_up_to_their_ceiling() -> None:
    before = torch.tensor([2.0, 1e-12, -3.0], dtype=torch.float64)
    half, initial = torch.finfo(torch.float64).eps ** 0.5, before + before.abs()
    for rise, drifts in ((0.5 * LIMIT, True), (2 * LIMIT, False)):
        after = before + rise * before.abs()
        assert is_safe(before, after).tolist() == [drifts, True, drifts]
        assert is_safe(before, after, ceiling_of(before, initial)).tolist() == [drifts] * 3
        assert is_safe(before, after, ceiling_of(before, before)).tolist() == [False] * 3
        assert is_safe(before, 2 * before - after, ceiling_of(before, before)).tolist() == [drifts, True, drifts]
    assert is_safe(before, before + 0.5 * half * before.abs(), ceiling_of(before, before)).all()
    assert not is_safe(before, before * torch.nan, ceiling_of(before, initial)).any()
    assert rounding(torch.float64) == half and rounding(torch.float32) == LIMIT


def test_one_bad_number_makes_its_task_unfinished_and_no_other() -> None:
    params = {"a": torch.ones(3, 2, 2), "b": torch.ones(3, 1)}
    params["a"][0, 1, 1], params["b"][2] = torch.inf, torch.nan
    assert is_finite(params).tolist() == [False, True, False]


@pytest.mark.parametrize("tolerance", [LIMIT, 1e-2])
def test_blocks_that_rounding_could_not_afford_become_identities(tolerance: float) -> None:
    limit = Limits(tolerance).condition(torch.float32)
    g = torch.eye(3).repeat(2, 2, 1, 1) * 2
    g[0, 1, 0, 0], g[1, 0, 0, 0], g[1, 1, 0, 0] = 2.2 * limit, 1.8 * limit, torch.nan
    used = is_usable(GL(3, (2,)), g, limit)
    assert used.tolist() == [[True, False], [True, False]]
    kept = only(GL(3, (2,)), g, used)
    assert torch.equal(kept[:, 0], g[:, 0]) and torch.equal(kept[:, 1], torch.eye(3).expand(2, 3, 3))


def test_the_reason_names_the_first_thing_that_cannot_be_used() -> None:
    family = Regression(width=3, depth=3, data="gaussian", activation="identity")
    tasks = family.sample(1, torch.Generator().manual_seed(0), dtype=torch.float64)
    symmetry, params = tasks.symmetry, tasks.params
    elements = [site.group.identity(1, dtype=torch.float64).clone() for site in symmetry.sites]
    first, last = (site.name for site in (symmetry.sites[0], symmetry.sites[-1]))
    assert Limits(1e-9).fault(symmetry, elements, params, looked=False) == ""
    spoilt = {**params, "layers.1.weight": params["layers.1.weight"] * torch.nan}
    expected = "the moved parameter 'layers.1.weight' is not finite"
    assert Limits().fault(symmetry, elements, spoilt, looked=True) == expected
    elements[-1][0, 0, 0] = 1e8
    assert Limits(1e-7).fault(symmetry, elements, spoilt, looked=True) == expected
    assert (
        Limits(1e-9)
        .fault(symmetry, elements, spoilt, looked=False)
        .startswith(f"the element at site '{last}' is ill-conditioned: 1.0e+08, and the limit is 4.5e+06")
    )
    elements[0][0] = 0
    assert Limits().fault(symmetry, elements, spoilt, looked=True) == f"the element at site '{first}' is singular"
    assert Limits(1e-3).drift_fault(1e-3) == ""
    assert Limits(1e-3).drift_fault(torch.nan) == "the loss moved by nan, and the tolerance is 1.0e-03"
