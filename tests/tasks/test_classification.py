"""Classification: which images a task sees, its loss and test figures, the shared images, the symmetry, refusals."""

from pathlib import Path
from typing import Any

import laws
import numpy as np
import pytest
import tolerances
import torch
from torch import Tensor
from torch.nn import functional as F

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.tasks.classification import CHUNK, Classification, ClassificationTasks
from meta_teleport.tasks.family import SPLITS

DIGITS = Classification(hidden=[12, 9], points=40, batch=8)
OUTPUTS = tolerances.summed(64 + 12 + 9 + 3, condition=3.0)  # about the root of the fan-in where signs are random


def drawn(count: int, generator: torch.Generator, split: Any = "train") -> ClassificationTasks:
    return DIGITS.sample(count, generator, split, dtype=torch.float64)


def steps(tasks: ClassificationTasks, number: int = 0) -> Tensor:
    return torch.full((tasks.count,), number)


def outputs_by_hand(params: Params, task: int, x: Tensor) -> Tensor:
    for i in range(3):
        x = F.leaky_relu(x, 0.1) if i else x
        x = F.linear(x, params[f"layers.{i}.weight"][task], params[f"layers.{i}.bias"][task])
    return x


def test_losses_and_test_figures_by_hand(generator: torch.Generator) -> None:
    tasks = drawn(3, generator)
    images, params = DIGITS.images.to("cpu", torch.float64), tasks.params
    losses, test_losses, accuracies = [], [], []
    for task in range(3):
        rows, names = tasks.data["index"][task, 16:24], tasks.data["classes"][task]
        losses.append(F.cross_entropy(outputs_by_hand(params, task, images.x_train[rows]), names[images.y_train[rows]]))
        outputs, labels = outputs_by_hand(params, task, images.x_test), names[images.y_test]
        test_losses.append(F.cross_entropy(outputs, labels))
        accuracies.append((outputs.argmax(1) == labels).double().mean())
    rounding = tolerances.cross_entropy(OUTPUTS, outputs, torch.stack(losses + test_losses))
    laws.assert_close(tasks.loss(params, steps(tasks, 2)), torch.stack(losses), rounding)
    laws.assert_close(tasks.loss(params, steps(tasks, 7)), torch.stack(losses), rounding)
    laws.assert_close(tasks.test_loss(params), torch.stack(test_losses), rounding)
    laws.assert_close(tasks.test_accuracy(params), torch.stack(accuracies), tolerances.summed(3))
    laws.must_fail(laws.assert_close, tasks.loss(params, steps(tasks, 3)), torch.stack(losses), 1e-3)


def test_the_error_is_that_of_validation_images(generator: torch.Generator) -> None:
    tasks = drawn(2, generator)
    images, params = DIGITS.images.to("cpu", torch.float64), tasks.params
    assert 0 < len(images.x_validation) <= CHUNK
    wanted = []
    for task in range(2):
        labels = tasks.data["classes"][task][images.y_validation]
        outputs = outputs_by_hand(params, task, images.x_validation)
        wanted.append(F.cross_entropy(outputs, labels))
    rounding = tolerances.cross_entropy(OUTPUTS, outputs, torch.stack(wanted))
    laws.assert_close(tasks.error(params, steps(tasks, 5)), torch.stack(wanted), rounding)
    laws.must_fail(laws.assert_close, tasks.test_loss(params), torch.stack(wanted), 1e-4)


def test_the_splits_share_no_image_and_tasks_differ(generator: torch.Generator) -> None:
    index = [drawn(50, generator, split).data["index"] for split in SPLITS]
    seen = [set(found.flatten().tolist()) for found in index]
    assert not seen[0] & seen[1] and len(seen[0]) > 0.9 * DIGITS.half
    assert max(seen[1]) < len(DIGITS.images.x_train)
    assert all(len(set(row)) == 40 for row in index[0].tolist())
    names = drawn(20, generator).data["classes"]
    assert torch.equal(names.sort(-1).values, torch.arange(10).expand(20, -1))
    assert len(set(map(tuple, names.tolist()))) == 20


def test_images_are_held_once(generator: torch.Generator) -> None:
    tasks, others = drawn(3, generator), drawn(2, generator)
    chosen, mixed = tasks.select(torch.tensor([2, 0])), tasks.put(torch.tensor([1, 2]), others)
    assert all(t.images.x_train is others.images.x_train for t in (tasks, chosen, mixed))
    assert {name: tuple(t.shape) for name, t in tasks.data.items()} == {"index": (3, 40), "classes": (3, 10)}
    assert DIGITS.sample(1, generator).images.x_train.dtype == torch.float32


def test_scalings_keep_every_figure(generator: torch.Generator) -> None:
    tasks = drawn(4, generator)
    sites, step = tasks.symmetry.sites, steps(tasks, 1)
    assert len(sites) == 2 and all(site.exact for site in sites)
    g = [site.group.sample(4, generator=generator, size=2.0, dtype=torch.float64) for site in sites]
    moved = tasks.symmetry.act(tasks.params, g)
    laws.assert_close(tasks.loss(moved, step), tasks.loss(tasks.params, step), 1e-12)
    laws.assert_close(tasks.test_loss(moved), tasks.test_loss(tasks.params), 1e-12)
    laws.must_fail(laws.params_close, moved, tasks.params, 1e-2)
    wrong = tasks.symmetry.act(tasks.params, [-g[0], g[1]])
    laws.must_fail(laws.assert_close, tasks.loss(wrong, step), tasks.loss(tasks.params, step), 1e-3)


def test_activations_are_those_of_the_batch(generator: torch.Generator) -> None:
    tasks = drawn(2, generator)
    last = tasks.symmetry.hidden(tasks.params, tasks.inputs(steps(tasks, 1)))[-1]
    outputs = tasks.params["layers.2.weight"] @ last + tasks.params["layers.2.bias"].unsqueeze(-1)
    laws.assert_close(outputs.mT, tasks.outputs(tasks.params, steps(tasks, 1)), OUTPUTS)


def test_gradient_descent_learns_what_carries_over_to_the_test_images(generator: torch.Generator) -> None:
    tasks = Classification(batch=64).sample(3, generator)
    params = tasks.params
    for number in range(150):
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        gradients = torch.autograd.grad(tasks.loss(leaves, steps(tasks, number)).sum(), list(leaves.values()))
        params = {name: p - 0.5 * g for (name, p), g in zip(params.items(), gradients, strict=True)}
    assert bool((tasks.test_accuracy(tasks.params) < 0.4).all())
    assert bool((tasks.test_accuracy(params) > 0.85).all())


def write(path: Path, test: int) -> Path:
    draw, shape = np.random.default_rng(0), (5, 4)
    rows = {f"x_{part}": draw.normal(size=(n, *shape)) for part, n in (("train", 24), ("test", test))}
    np.savez(path, **rows, y_train=np.arange(24) % 3, y_test=np.arange(test) % 3)
    return path


def test_an_npz_with_more_test_images_than_are_looked_at_at_once(tmp_path: Path, generator: torch.Generator) -> None:
    family = Classification(str(write(tmp_path / "own.npz", 2 * CHUNK + 7)), batch=None, points=6)
    tasks = family.sample(2, generator, dtype=torch.float64)
    assert family.model.widths == (20, 32, 3) and tasks.outputs(tasks.params, steps(tasks)).shape == (2, 6, 3)
    by_hand = []
    for task in range(2):
        v, b, u, c = (p[task] for p in tasks.params.values())
        outputs = F.linear(F.leaky_relu(F.linear(tasks.images.x_test, v, b), 0.1), u, c)
        by_hand.append(F.cross_entropy(outputs, tasks.data["classes"][task][tasks.images.y_test]))
    laws.assert_close(tasks.test_loss(tasks.params), torch.stack(by_hand), 1e-12)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"data": "letters"}, "unknown data set 'letters': choose one of digits, mnist, fashion_mnist, cifar10, or give "
     "the path of an .npz file"),
    ({"points": 600}, "600 points do not fit the half of 599 images: choose 1 to 599"),
    ({"points": 0}, "0 points do not fit the half of 599 images: choose 1 to 599"),
    ({"points": 30}, "batch 64 does not fit 30 points: choose 1 to 30"),
    ({"activation": "tanh"},
     "action 'scaling' needs a positively homogeneous activation, and 'tanh' is not"),
    ({"hidden": []}, "widths [64, 10] do not make an MLP: give at least three positive numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "text"), REFUSALS, ids=str)
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as error:
        Classification(**options)
    assert str(error.value) == text
