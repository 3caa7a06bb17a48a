"""Adapters and attention pairs: the sites that detection finds, exactness, the pool of pre-trained models, refusals."""

from typing import Any

import laws
import pytest
import tolerances
import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.symmetry.groups import GL, FirstOrder
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.tasks.adaptation import Adaptation, Adapters, AttentionPairs
from meta_teleport.tasks.language import FROZEN, LanguageTasks
from meta_teleport.tasks.pretraining import adam
from meta_teleport.tasks.transformer import initial, structure

SMALL: dict[str, Any] = {"width": 8, "layers": 2, "heads": 2, "batch": 4, "points": 16, "test": 8, "pool": 3}
SMALL |= {"pretraining_steps": 40, "pretraining_lr": 1e-2}
FAMILIES: dict[str, Adaptation] = {
    "adapters": Adapters(rank=2, **SMALL),
    "attention": AttentionPairs(**SMALL),
    "fresh attention": AttentionPairs(fresh=True, **SMALL),
}
NAMES = list(FAMILIES)


def drawn(name: str, count: int, generator: torch.Generator, split: Any = "train") -> LanguageTasks:
    """Tasks with every trained parameter moved a little, as B starts at zero."""
    tasks = FAMILIES[name].sample(count, generator, split, dtype=torch.float64)
    for p in tasks.params.values():
        p += 0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return tasks


def steps(tasks: LanguageTasks, number: int = 0) -> Tensor:
    return torch.full((tasks.count,), number)


def by_head(name: str, axis: int) -> View:
    """A square matrix of width 8 with the units of 2 heads along one axis, written by hand."""
    shape, units = ((2, 4, 8), 1) if axis == 0 else ((8, 2, 4), 2)
    return View(name, 2, shape, (units,), (units - 1,))


def attention_sites() -> dict[str, Site]:
    """By hand: ``W_Q -> g W_Q, W_K -> g^-T W_K`` and ``W_V -> g W_V, W_O -> W_O g^-1``, head by head."""
    sites = {}
    for i in (0, 1):
        query, key, value, out = (f"blocks.{i}.{role}.weight" for role in ("query", "key", "value", "out"))
        sites[query] = Site(query, GL(4, (2,)), (by_head(query, 0),), (by_head(key, 0),))
        sites[value] = Site(value, GL(4, (2,)), (by_head(value, 0),), (by_head(out, 1),))
    return sites


def adapter_sites() -> dict[str, Site]:
    """By hand: ``A -> g A, B -> B g^-1``."""
    sites = {}
    for i in (0, 1):
        for role, d, m in (*((r, 8, 8) for r in ("query", "key", "value", "out")), ("up", 8, 16), ("down", 16, 8)):
            a, b = f"blocks.{i}.{role}.A", f"blocks.{i}.{role}.B"
            sites[a] = Site(a, GL(2), (View.along(a, (2, d), 0),), (View.along(b, (m, 2), 1),))
    return sites


@pytest.mark.parametrize("name", NAMES)
def test_detection_finds_the_sites_written_by_hand(name: str, generator: torch.Generator) -> None:
    tasks, by_hand = drawn(name, 3, generator), adapter_sites() if name == "adapters" else attention_sites()
    sites = {site.producers[0].name: site for site in tasks.symmetry.sites}
    assert sites.keys() == by_hand.keys() and len(sites) == len(tasks.symmetry.sites)
    assert {n for site in sites.values() for n in site.parameters} == set(tasks.params)
    for key, site in sites.items():
        assert site.group == by_hand[key].group and site.parameters == by_hand[key].parameters
        g = site.group.sample(3, generator=generator, dtype=torch.float64)
        rounding = tolerances.solved(site.group.k, float(torch.linalg.cond(g).max()))
        laws.params_close(site.act(tasks.params, g), by_hand[key].act(tasks.params, g), rounding)
        laws.must_fail(laws.params_close, site.act(tasks.params, g), tasks.params, 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_element_keeps_what_the_model_computes(name: str, generator: torch.Generator) -> None:
    tasks = drawn(name, 3, generator)
    g = [site.group.sample(3, generator=generator, size=1.5, dtype=torch.float64) for site in tasks.symmetry.sites]
    assert all(site.exact for site in tasks.symmetry.sites)

    def kept(moved: Params) -> None:
        step = steps(tasks, 1)
        laws.assert_close(tasks.outputs(moved, step), tasks.outputs(tasks.params, step), 1e-10)
        laws.assert_close(tasks.loss(moved, step), tasks.loss(tasks.params, step), 1e-10)
        laws.assert_close(tasks.excess(moved), tasks.excess(tasks.params), 1e-9)

    kept(tasks.symmetry.act(tasks.params, g))
    laws.must_fail(laws.params_close, tasks.symmetry.act(tasks.params, g), tasks.params, 1e-2)
    first_order = Symmetry(
        tuple(Site(s.name, FirstOrder(s.group.k), s.producers, s.consumers) for s in tasks.symmetry.sites)
    )
    laws.must_fail(kept, first_order.act(tasks.params, g))
    assert tasks.symmetry.hidden(tasks.params, tasks.inputs(steps(tasks))) == ()


@pytest.mark.parametrize("name", NAMES)
def test_tasks_share_a_pool_of_models_and_differ_in_all_else(name: str, generator: torch.Generator) -> None:
    family = FAMILIES[name]
    tasks = family.sample(12, generator)
    pool = family.models("train").params["token"]
    assert family.models("train") is family.models("train") and len(pool) == 3
    assert not torch.equal(pool, family.models("held_out").params["token"])
    which = (tasks.data["frozen.token"].unsqueeze(1) == pool).flatten(2).all(2)
    assert torch.equal(which.sum(1), torch.ones(12).long()) and bool(which.any(0).all())
    assert len({tuple(rows.flatten().tolist()) for rows in tasks.data["sequences"]}) == 12
    assert {n.removeprefix(FROZEN) for n in tasks.data if n.startswith(FROZEN)} | set(tasks.params) == set(
        family.models("train").params
    )
    starts = len({tuple(p.flatten().tolist()) for p in next(iter(tasks.params.values()))})
    assert starts == (3 if name == "attention" else 12)


def test_families_of_one_seed_have_the_same_models() -> None:
    options = {**SMALL, "pretraining_steps": 2}
    first, same, other = (AttentionPairs(seed=seed, **options).models("train") for seed in (5, 5, 6))
    assert torch.equal(first.params["token"], same.params["token"])
    assert not torch.equal(first.params["token"], other.params["token"])


def test_adapters_start_as_the_pre_trained_model(generator: torch.Generator) -> None:
    family = FAMILIES["adapters"]
    tasks = family.sample(2, generator)
    assert not any(bool(p.any()) for name, p in tasks.params.items() if name.endswith(".B"))
    fresh = initial(structure(family.sizes), 2, generator, family.trained)
    step = steps(tasks)
    laws.assert_close(tasks.loss({**tasks.params, "blocks.0.up.A": fresh["blocks.0.up.A"]}, step),
                      tasks.loss(tasks.params, step), 1e-6)  # fmt: skip


@pytest.mark.parametrize(("family", "options"), [(Adapters, {"rank": 2}), (AttentionPairs, {"fresh": True})])
def test_training_comes_nearer_to_the_shifted_language(
    family: Any, options: dict[str, Any], generator: torch.Generator
) -> None:
    more = {**SMALL, "layers": 1, "batch": 16, "points": 512, "test": 64, "shift": 1.0, "pretraining_steps": 80}
    tasks = family(**more, **options).sample(4, generator)
    after = tasks.excess(adam(tasks, 0.02, 80))
    assert bool((after < tasks.excess(tasks.params) - 0.05).all())


REFUSALS: list[tuple[type[Adaptation], dict[str, Any], str]] = [
    (Adapters, {"rank": 0}, "adapters of rank 0 train nothing: choose 1 to 64"),
    (Adapters, {"pool": 0}, "a pool of 0 models has none to adapt: give 1 or more"),
    (AttentionPairs, {"pool": 0}, "a pool of 0 models has none to adapt: give 1 or more"),
    (AttentionPairs, {"batch": 0}, "batch 0 does not fit 4096 points: choose 1 to 4096"),
]


@pytest.mark.parametrize(("family", "options", "text"), REFUSALS, ids=str)
def test_refusals(family: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as error:
        family(**options)
    assert str(error.value) == text
