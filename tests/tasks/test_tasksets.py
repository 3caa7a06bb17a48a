"""Tasksets: learn2learn's loaders and tasksets of one's own, global generators, what is refused."""

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from few_shot_cases import seeded, telling, telling_images
from PIL import Image

from meta_teleport.errors import UserError
from meta_teleport.tasks.few_shot import FewShot
from meta_teleport.tasks.tasksets import learn2learn


def own_taskset(classes: list[int], num_tasks: int = -1, remap: bool = True) -> Any:
    """A taskset as users of learn2learn write them."""
    data, images = learn2learn().data, telling_images()
    dataset = torch.utils.data.TensorDataset(images.x_train, images.y_train)
    kept = data.FilteredMetaDataset(data.MetaDataset(dataset), classes)
    transforms = [
        data.transforms.NWays(kept, 2),
        data.transforms.KShots(kept, 4),
        data.transforms.LoadData(kept),
        *([data.transforms.RemapLabels(kept)] if remap else []),
    ]
    return data.Taskset(kept, transforms, num_tasks=num_tasks)


@pytest.mark.parametrize("num_tasks", [-1, 3])
def test_tasksets_of_ones_own(num_tasks: int) -> None:
    family = FewShot((own_taskset([0, 1, 2], num_tasks), own_taskset([3, 4])), ways=2, shots=1, queries=3)
    tasks = family.sample(20, seeded())
    assert {int(c) for c in tasks.data["inputs"][..., 0].unique()} == {0, 1, 2}
    assert tasks.data["query_inputs"].shape == (20, 6, 2)
    distinct = len({tuple(row.flatten().tolist()) for row in tasks.data["inputs"]})
    assert distinct <= 3 if num_tasks == 3 else distinct > 3
    again = FewShot((own_taskset([0, 1, 2], num_tasks), own_taskset([3, 4])), ways=2, shots=1, queries=3)
    again.sample(5, seeded(1))
    assert torch.equal(again.sample(20, seeded()).data["inputs"], tasks.data["inputs"])


def test_mini_imagenet_through_learn2learns_loader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    for mode in ("train", "test"):
        content = {
            "image_data": generator.integers(0, 256, (12, 10, 10, 3), dtype=np.uint8),
            "class_dict": {f"{mode}{c}": list(range(4 * c, 4 * c + 4)) for c in range(3)},
        }
        (tmp_path / f"mini-imagenet-cache-{mode}.pkl").write_bytes(pickle.dumps(content))
    family = FewShot("mini_imagenet", str(tmp_path), download=False, ways=3, shots=1, queries=3, pixels=5)
    tasks = family.sample(2, seeded(), "held_out", dtype=torch.float64)
    expected = torch.from_numpy(content["image_data"]).double().movedim(-1, 1) / 255
    pooled = expected.unflatten(2, (5, 2)).unflatten(4, (5, 2)).mean((3, 5)).flatten(1)
    found = torch.cat([tasks.data["inputs"][0], tasks.data["query_inputs"][0]])
    assert float((found[:, None] - pooled[None]).abs().amax(-1).amin(1).max()) < 1e-6
    assert capsys.readouterr().out == ""


def test_omniglot_through_learn2learns_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Omniglot

    number = 0
    for part, characters in (("images_background", 964), ("images_evaluation", 659)):
        for character in range(characters):
            folder = tmp_path / "omniglot-py" / part / "alphabet" / f"character{character:04d}"
            folder.mkdir(parents=True)
            for copy in range(2):
                paper = np.full((2, 2), 255 - number // 8, dtype=np.uint8)
                Image.fromarray(paper).save(folder / f"{character:04d}_{copy:02d}.png")
            number += 1
    monkeypatch.setattr(Omniglot, "_check_integrity", lambda self: True)
    family = FewShot("omniglot", str(tmp_path), download=False, ways=5, shots=1, queries=1)
    train, held_out = (set(taskset.dataset.labels) for taskset in family.tasksets.values())
    assert (len(train), len(held_out), len(train & held_out)) == (1100, 423, 0)
    tasks = family.sample(2, seeded())
    ink = tasks.data["inputs"]
    assert ink.shape == (2, 5, 4) and float(ink.min()) >= 0 and float(ink.max()) <= 202 / 255 + 1e-6
    assert torch.equal(ink, tasks.data["query_inputs"])  # the two copies of each character


@pytest.mark.parametrize("data", ["omniglot", "mini_imagenet"])
def test_data_that_are_not_there(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        FewShot(data, str(tmp_path), download=False)
    text = str(error.value)
    assert text.startswith(f"{data} in {tmp_path} is missing or damaged (") and "\n" not in text
    assert text.endswith(
        "): delete it there and let it be downloaded again (--download), or name the folder that has it"
    )


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    "name", ["mini-imagenet-cache-train", "mini-imagenet-bookkeeping-test", "omniglot-bookkeeping"]
)
@pytest.mark.parametrize("data", ["omniglot", "mini_imagenet"])
def test_a_pickle_that_is_a_program_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps({"image_data": Bomb(), "class_dict": {}}))
    with pytest.raises(UserError, match=r"names posix.mkdir, and only plain data and arrays are unpickled"):
        FewShot(data, str(tmp_path), download=False)
    assert not (tmp_path / "exploded").exists()


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        FewShot("mini_imagenet", str(tmp_path / "elsewhere"), download=False)
    assert not (tmp_path / "elsewhere").exists()


def test_damaged_mini_imagenet(tmp_path: Path) -> None:
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"mini_imagenet in .* is missing or damaged"):
        FewShot("mini_imagenet", str(tmp_path), download=False)


def test_tasks_of_another_form() -> None:
    unmapped = own_taskset([1, 2], remap=False)
    with pytest.raises(UserError) as error:
        FewShot((unmapped, unmapped), ways=2, shots=1, queries=3)
    assert str(error.value) == (
        "a task of this taskset has the labels 4 of 1, 4 of 2: it must have 4 (shots and queries) of each of 0 to 1; "
        "end its transforms with LoadData and RemapLabels"
    )
    with pytest.raises(UserError, match="it must have 5 "):
        FewShot((own_taskset([1, 2]), own_taskset([3, 4])), ways=2, shots=2, queries=3)


def test_without_learn2learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    with pytest.raises(UserError) as error:
        FewShot()
    assert str(error.value) == (
        "few-shot tasks need learn2learn (import of learn2learn halted; None in sys.modules): install it as the "
        "README's section 'Tests' says"
    )


def test_global_generators_are_left_where_they_were() -> None:
    family = telling()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    family.sample(3, seeded())
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


def test_the_state_of_global_generators_does_not_matter() -> None:
    family = telling()
    tasks = []
    for seed in (1, 2):
        random.seed(seed)
        tasks.append(family.sample(3, seeded()))
    assert torch.equal(tasks[0].data["inputs"], tasks[1].data["inputs"])
    assert not torch.equal(tasks[0].data["inputs"], family.sample(3, seeded(6)).data["inputs"])


def test_importing_the_family_does_not_import_learn2learn() -> None:
    code = "import sys, meta_teleport.tasks.few_shot; print('learn2learn' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_using_the_family_is_silent() -> None:
    code = "import meta_teleport as mt, torch; mt.FewShot().sample(2, torch.Generator())"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
