"""What every task family promises: reproducible batches, disjoint splits, tasks that can be replaced."""

from typing import Any

import pytest
import torch
from torch import Tensor

from meta_teleport.tasks.adaptation import Adapters, AttentionPairs
from meta_teleport.tasks.classification import Classification
from meta_teleport.tasks.factorization import Factorization
from meta_teleport.tasks.family import SPLITS, TaskFamily, Tasks, split_generator
from meta_teleport.tasks.few_shot import FewShot
from meta_teleport.tasks.functions import FUNCTIONS, Functions
from meta_teleport.tasks.linear import DeepLinear
from meta_teleport.tasks.regression import Regression

MODEL: dict[str, Any] = {"width": 4, "layers": 1, "heads": 2, "batch": 2, "points": 8, "test": 2, "pool": 2}
MODEL |= {"pretraining_steps": 1, "pretraining_batch": 2}
FAMILIES: dict[str, TaskFamily] = {
    "paper": Regression(),
    "deep": Regression(width=4, depth=3, data="gaussian", bias=True, labels="teacher", noise=0.1),
    "batches": Regression(width=6, points=12, batch=5, activation="asinh"),
    "relu": Regression(width=5, points=30, activation="relu", action="scaling"),
    "factors": Factorization(rank=2, inputs=5, outputs=4, points=12, batch=5, noise=0.1),
    "missing": Factorization(rank=2, inputs=5, outputs=4, points=12, batch=5, missing=0.3),
    "linear": DeepLinear(width=4, depth=4, inputs=5, points=12, batch=5, noise=0.1, missing=0.2),
    "digits": FewShot(),
    "digits in batches": FewShot(ways=2, shots=4, batch=4, pixels=4, action="general_linear"),
    "classes": Classification(hidden=[6], points=20, batch=8),
    "adapters": Adapters(rank=2, **MODEL),
    "attention": AttentionPairs(fresh=True, **MODEL),
    **{name: Functions(name) for name in FUNCTIONS},
}
NAMES = list(FAMILIES)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensors(tasks: Tasks) -> dict[str, Tensor]:
    return {**tasks.params, **{f"data.{name}": t for name, t in tasks.data.items()}}


def steps(tasks: Tasks, number: int = 0) -> Tensor:
    return torch.full((tasks.count,), number)


def test_there_are_families() -> None:
    assert len(NAMES) == 16


@pytest.mark.parametrize("name", NAMES)
def test_the_same_generator_state_gives_the_same_tasks(name: str, device: str) -> None:
    single = FAMILIES[name].sample(6, seeded(), device=device)
    double = FAMILIES[name].sample(6, seeded(), dtype=torch.float64)
    assert single.count == double.count == 6
    assert tensors(single).keys() == tensors(double).keys()
    for a, b in zip(tensors(single).values(), tensors(double).values(), strict=True):
        whole = (torch.float32, torch.float64) if b.is_floating_point() else (torch.int64, torch.int64)
        assert (a.dtype, b.dtype, a.device.type) == (*whole, torch.device(device).type)
        assert torch.equal(a.cpu(), b.to(a.dtype))


@pytest.mark.parametrize("name", NAMES)
def test_no_task_of_one_split_is_one_of_the_other(name: str) -> None:
    train, held_out = (FAMILIES[name].sample(20, seeded(), split) for split in SPLITS)
    for key, a in train.params.items():
        distinct = (a.unsqueeze(0) != held_out.params[key].unsqueeze(1)).flatten(2).any(2)
        assert bool(distinct.all()) or (key.endswith((".bias", ".B")) and not bool(a.any()))


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_that_moves_on_gives_other_tasks(name: str) -> None:
    generator = seeded()
    first, second = (FAMILIES[name].sample(4, generator) for _ in range(2))
    assert not any(torch.equal(a, b) for a, b in zip(first.params.values(), second.params.values(), strict=True) if
                   bool(a.any()))  # fmt: skip


def test_the_splits_divide_the_seeds() -> None:
    train = {split_generator(seeded(i), "train").initial_seed() for i in range(200)}
    held_out = {split_generator(seeded(i), "held_out").initial_seed() for i in range(200)}
    assert len(train) == len(held_out) == 200
    assert {seed % 2 for seed in train} == {0}
    assert {seed % 2 for seed in held_out} == {1}


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_inputs_have_one_entry_per_task(name: str) -> None:
    tasks = FAMILIES[name].sample(5, seeded(), dtype=torch.float64)
    assert tasks.loss(tasks.params, steps(tasks)).shape == (5,)
    assert tasks.inputs(steps(tasks)).columns.shape[0] == 5
    assert tasks.outputs(tasks.params, steps(tasks)).shape[0] == 5
    seen = tasks.symmetry.hidden(tasks.params, tasks.inputs(steps(tasks)))
    assert len(seen) == (0 if name in ("adapters", "attention") else len(tasks.symmetry.sites))


@pytest.mark.parametrize("name", NAMES)
def test_select_and_put(name: str) -> None:
    tasks = FAMILIES[name].sample(5, seeded(), dtype=torch.float64)
    fresh = FAMILIES[name].sample(2, seeded(4), dtype=torch.float64)
    before = tasks.loss(tasks.params, steps(tasks))
    chosen = tasks.select(torch.tensor([3, 1, 3]))
    assert chosen.count == 3
    assert torch.allclose(chosen.loss(chosen.params, steps(chosen)), before[[3, 1, 3]], rtol=1e-12)
    mixed = tasks.put(torch.tensor([4, 0]), fresh)
    after = mixed.loss(mixed.params, steps(mixed))
    new = fresh.loss(fresh.params, steps(fresh))
    assert torch.allclose(after, torch.stack([new[1], *before[1:4], new[0]]), rtol=1e-12)
    assert torch.equal(tasks.loss(tasks.params, steps(tasks)), before)


@pytest.mark.parametrize("name", NAMES)
def test_the_symmetry_keeps_the_loss(name: str, generator: torch.Generator) -> None:
    tasks = FAMILIES[name].sample(5, seeded(), dtype=torch.float64)
    step, sites = steps(tasks, 2), tasks.symmetry.sites
    g = [site.group.sample(5, generator=generator, size=0.5, dtype=torch.float64) for site in sites]
    moved = tasks.symmetry.act(tasks.params, g, tasks.inputs(step))
    before, after = tasks.loss(tasks.params, step), tasks.loss(moved, step)
    assert float(((after - before) / before.clamp(min=1)).abs().max()) < 1e-9
    assert not torch.allclose(moved[sites[0].parameters[0]], tasks.params[sites[0].parameters[0]], rtol=1e-3)
