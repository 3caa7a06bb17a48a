"""Few-shot tasks: what learn2learn draws, classes and seeds apart, losses by hand, the command line, refusals."""

import json
import random
from pathlib import Path
from typing import Any

import laws
import pytest
import tolerances
import torch
from few_shot_cases import seeded, telling
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

import meta_teleport as mt
from meta_teleport.cli.main import main
from meta_teleport.errors import UserError
from meta_teleport.tasks.family import split_generator
from meta_teleport.tasks.few_shot import FewShot, FewShotTasks
from meta_teleport.tasks.tasksets import learn2learn


def drawn(count: int = 6, split: Any = "train", **options: Any) -> FewShotTasks:
    return telling(**options).sample(count, seeded(), split, dtype=torch.float64)


def steps(tasks: FewShotTasks, number: int = 0) -> Tensor:
    return torch.full((tasks.count,), number)


def random_params(tasks: FewShotTasks) -> dict[str, Tensor]:
    generator = seeded(8)
    return {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in tasks.params.items()}


def rounding(params: dict[str, Tensor], outputs: Tensor, loss: Tensor) -> float:
    """Outputs that add up products with all weights and biases in front of them, three times as large in sum."""
    terms = sum(p.shape[-1] if p.ndim == 3 else 1 for p in params.values())
    return tolerances.cross_entropy(tolerances.summed(terms, condition=3.0), outputs, loss)


def test_the_tasks_are_learn2learns_own() -> None:
    family, l2l = telling(), learn2learn()
    tasks = family.sample(4, seeded())
    random.seed(split_generator(seeded(), "train").initial_seed())
    for i in range(4):
        x, y = family.tasksets["train"].sample()
        parts = l2l.data.partition_task(x, y, shots=2)
        for name, (images, labels) in zip(("", "query_"), parts, strict=True):
            rounds = images.view(3, -1, 2).transpose(0, 1).flatten(0, 1)
            assert torch.equal(tasks.data[f"{name}inputs"][i], rounds)
            assert torch.equal(tasks.data[f"{name}labels"][i].argmax(-1), labels.view(3, -1).T.flatten())
    random.seed(split_generator(seeded(), "held_out").initial_seed())
    other, _ = family.tasksets["train"].sample()
    assert not torch.equal(other[:6].sort(0).values, x[:6].sort(0).values)


@pytest.mark.parametrize(("split", "allowed"), [("train", {0, 2, 3, 5}), ("held_out", {1, 4, 6})])
def test_tasks_hold_what_they_should(split: Any, allowed: set[int]) -> None:
    tasks = drawn(40, split)
    seen = set()
    for i in range(tasks.count):
        x = torch.cat([tasks.data["inputs"][i], tasks.data["query_inputs"][i]])
        y = torch.cat([tasks.data["labels"][i], tasks.data["query_labels"][i]]).argmax(-1)
        classes = [set(x[y == way, 0].long().tolist()) for way in range(3)]
        assert all(len(own) == 1 for own in classes) and len(set.union(*classes)) == 3
        assert len({tuple(row) for row in x.tolist()}) == len(x) == 18
        assert torch.bincount(tasks.data["labels"][i].argmax(-1)).tolist() == [2, 2, 2]
        seen.add(tuple(own.pop() for own in classes))
    assert {c for classes in seen for c in classes} == allowed
    orders = {tuple(sorted(classes)): 0 for classes in seen}
    assert len(seen) > len(orders)  # labels are shuffled


def test_the_splits_share_no_class() -> None:
    for family in (telling(), FewShot(held_out=[0, 3, 9])):
        train, held_out = (set(taskset.dataset.labels) for taskset in family.tasksets.values())
        assert train and held_out and not train & held_out
    assert held_out == {0, 3, 9}
    assert set(FewShot().tasksets["held_out"].dataset.labels) == {6, 7, 8, 9}


@pytest.mark.parametrize("name", ["", "query_"])
def test_losses_and_accuracy_by_hand(name: str) -> None:
    tasks = drawn()
    params = random_params(tasks)
    for i in range(tasks.count):
        outputs = functional_call(tasks.model, {n: p[i] for n, p in params.items()}, (tasks.data[f"{name}inputs"][i],))
        labels = tasks.data[f"{name}labels"][i].argmax(-1)
        loss = tasks.query_loss(params) if name else tasks.loss(params, steps(tasks))
        expected = F.cross_entropy(outputs, labels)[None]
        laws.assert_close(loss[i][None], expected, rounding(params, outputs, expected))
        if name:
            assert float(tasks.query_accuracy(params)[i]) == float((outputs.argmax(-1) == labels).double().mean())
    assert len(set(tasks.query_accuracy(params).tolist())) > 1


def test_batches_are_rounds_of_one_image_per_class() -> None:
    tasks = drawn(batch=3)
    for step in (0, 1, 2):
        labels = tasks.rows("labels", steps(tasks, step))
        assert bool((labels.sum(1) == 1).all()) and labels.shape == (6, 3, 3)
    params = random_params(tasks)
    first, second, third = (tasks.loss(params, steps(tasks, step)) for step in (0, 1, 2))
    allowed = rounding(params, tasks.outputs(params, steps(tasks)), first)
    laws.assert_close(first, third, allowed)
    laws.assert_close((first + second) / 2, drawn().loss(params, steps(tasks)), allowed)
    laws.must_fail(laws.assert_close, first, second, 1e-3)


def test_scalings_keep_all_outputs_and_the_data_dependent_action_those_on_the_support_set() -> None:
    options = {"ways": 2, "shots": 1, "queries": 3, "bias": False}
    for action, keeps_queries in (("scaling", True), ("general_linear", False)):
        tasks = drawn(action=action, **options)
        params = random_params(tasks)
        g = [
            site.group.sample(tasks.count, generator=seeded(), size=0.5, dtype=torch.float64)
            for site in tasks.symmetry.sites
        ]
        moved = tasks.symmetry.act(params, g, tasks.inputs(steps(tasks)))
        laws.assert_close(tasks.loss(moved, steps(tasks)), tasks.loss(params, steps(tasks)), 1e-9)
        pair = tasks.query_outputs(moved), tasks.query_outputs(params)
        if keeps_queries:
            laws.assert_close(*pair, 1e-12)
        else:
            laws.must_fail(laws.assert_close, *pair, 1e-3)


def test_initialisations() -> None:
    own, common = drawn(), drawn(start=3)
    for name, p in common.params.items():
        assert torch.equal(p, p[:1].expand_as(p)) and not torch.equal(own.params[name][0], own.params[name][1])
    fan_in = {"layers.0": 2, "layers.1": 5, "layers.2": 4}
    many = drawn(400).params
    for name, p in many.items():
        bound = fan_in[name.rpartition(".")[0]] ** -0.5
        assert 0.95 * bound < float(p.abs().max()) <= bound
        assert abs(float(p.mean())) < 0.1 * bound
    assert not torch.equal(common.params["layers.0.weight"], drawn(start=4).params["layers.0.weight"])
    assert torch.equal(common.data["inputs"], own.data["inputs"])
    held_out = telling(start=3).sample(2, seeded(9), "held_out", dtype=torch.float64)
    assert torch.equal(held_out.params["layers.0.weight"][0], common.params["layers.0.weight"][0])


def test_images_are_averaged_down() -> None:
    images = FewShot(pixels=8).sample(2, seeded()).data["inputs"].view(2, 15, 8, 8)
    half = FewShot(pixels=4).sample(2, seeded()).data["inputs"].view(2, 15, 4, 4)
    laws.assert_close(half, images.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5)), 1e-6)
    assert torch.equal(FewShot(pixels=0).sample(2, seeded()).data["inputs"], images.flatten(2))


def test_the_command_line_takes_the_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["data=digits", "ways=2", "shots=3", "queries=4", "held_out=[0,1,2]", "hidden=[6]", "start=2"]
    training = ["meta_steps=2", "tasks=4", "window=2", "horizon=4"]
    argv = [*(f"--task.{flag}" for flag in flags), *(f"--training.{flag}" for flag in training)]
    rule = ["--rule.hidden_size=4"]
    assert main(["train", "--out", "run", "--task", "meta_teleport.tasks.few_shot.FewShot", *argv, *rule]) == 0
    task = json.loads(Path("run/config.json").read_text())["task"]
    assert task["class_path"] == "FewShot"
    assert task["init_args"]["held_out"] == [0, 1, 2] and task["init_args"]["data"] == "digits"
    family = FewShot(**task["init_args"])
    assert set(family.tasksets["held_out"].dataset.labels) == {0, 1, 2}
    assert mt.load("run").config["task"] == task
    capsys.readouterr()
    assert main(["evaluate", "run", "--tasks", "3", "--steps", "5", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["family"] == "few-shot" and len(content["methods"]["lstm-update-tele"]["median"]) == 6
    assert content["methods"]["lstm-update-tele"]["teleports"] == 15


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"ways": 1}, "ways 1, shots 5, queries 15 make no task: ways >= 2, the others >= 1"),
    ({"shots": 0}, "ways 3, shots 0, queries 15 make no task: ways >= 2, the others >= 1"),
    ({"pixels": -1}, "pixels is -1: give the side of an image, or 0 to leave images as they are"),
    ({"batch": 16}, "batch 16 does not fit 15 support images: choose 1 to 15"),
    ({"ways": 5}, "there are 4 classes held out, too few for 5 ways: choose fewer ways"),
    ({"held_out": [1, 2]}, "there are 2 classes held out, too few for 3 ways: choose fewer ways"),
    ({"held_out": range(8)}, "there are 2 classes to train on, too few for 3 ways: choose fewer ways"),
    ({"held_out": [1, 2, 10]}, "held_out [1, 2, 10]: give classes of digits (0 to 9), each once"),
    ({"held_out": [1, 2, 2]}, "held_out [1, 2, 2]: give classes of digits (0 to 9), each once"),
    ({"queries": 300}, "a class to train on has 177 images, too few for 305 shots and queries: choose fewer of them"),
    (
        {"action": "permutation"},
        "action 'permutation' has no Lie algebra to learn in: choose another one for a task family",
    ),
    ({"activation": "asinh"}, "action 'scaling' needs a positively homogeneous activation, and 'asinh' is not"),
    (
        {"action": "general_linear", "pixels": 3},
        "site 'layers.0' keeps the loss on at most 10 points and the batch has 15: use fewer points, a wider layer, or "
        "allow_drift=True (--task.allow_drift true) to accept the drift",
    ),
    ({"data": "omniglot", "held_out": [1]}, "omniglot comes with classes to hold out: leave held_out away"),
    (
        {"data": "letters"},
        "unknown data set 'letters': choose one of digits, mnist, fashion_mnist, cifar10, or give the path of an .npz "
        "file",
    ),
]


@pytest.mark.parametrize(("options", "text"), REFUSALS, ids=str)
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as error:
        FewShot(**options)
    assert str(error.value) == text
