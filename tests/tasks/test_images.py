"""Data sets of images: where they come from, how they are split and ordered, and what is refused."""

import gzip
import hashlib
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import random_split
from torchvision import datasets
from torchvision.datasets import utils

from meta_teleport.errors import UserError
from meta_teleport.tasks.images import KEYS, Images, load_images, order

Arrays = dict[str, np.ndarray]


def some_arrays(shape: tuple[int, ...] = (5, 5), train: int = 12, test: int = 4) -> Arrays:
    drawn = np.random.default_rng(0)
    return {
        "x_train": drawn.integers(0, 256, (train, *shape), np.uint8),
        "y_train": np.arange(train) % 3,
        "x_test": drawn.integers(0, 256, (test, *shape), np.uint8),
        "y_test": np.arange(test) % 3,
    }


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST: two zero bytes, the type (8: bytes), the number of axes, their lengths, the entries."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, arrays: Arrays, suffix: str = "", pack: Callable[[bytes], bytes] = bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in (("train", "train"), ("test", "t10k")):
        (folder / f"{name}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(arrays[f"x_{part}"])))
        (folder / f"{name}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(arrays[f"y_{part}"])))
    return folder


def saved(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def refused(*arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        load_images(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def images_in(x: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(map(tuple, x.flatten(1).tolist()))


# where they come from


def test_the_digits_need_no_files() -> None:
    images = load_images()
    assert (images.name, images.classes) == ("digits", 10)
    assert images.x_train.shape == (1198, 1, 8, 8)
    assert images.x_validation.shape == (239, 1, 8, 8)
    assert images.x_test.shape == (360, 1, 8, 8)
    assert (images.x_train.min(), images.x_train.max()) == (0, 1)
    everything = torch.cat([images.x_train, images.x_validation, images.x_test])
    assert images_in(everything) == images_in(torch.from_numpy(load_digits().images / 16).float())
    again = load_images("digits")
    assert torch.equal(images.x_train, again.x_train) and torch.equal(images.y_test, again.y_test)


def test_files_of_torchvision(tmp_path: Path) -> None:
    arrays = some_arrays((28, 28), train=18)
    write_mnist(tmp_path / "MNIST" / "raw", arrays)
    images = load_images("mnist", tmp_path, False)
    assert images.name == "mnist"
    assert (len(images.x_train), len(images.x_validation), len(images.x_test)) == (15, 3, 4)
    assert torch.equal(images.x_test, torch.from_numpy(arrays["x_test"]).float().unsqueeze(1) / 255)
    assert torch.equal(images.y_test, torch.from_numpy(arrays["y_test"]))
    assert "FashionMNIST" in refused("fashion_mnist", tmp_path, False)


def test_files_are_downloaded_where_they_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = write_mnist(tmp_path / "there", some_arrays((28, 28)), ".gz", gzip.compress)
    offer(monkeypatch, there)
    assert load_images("mnist", tmp_path / "here").x_test.shape == (4, 1, 28, 28)
    for file in there.iterdir():
        file.unlink()
    assert load_images("mnist", tmp_path / "here").x_test.shape == (4, 1, 28, 28)


def offer(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets torchvision take MNIST from a folder and believe its files."""
    monkeypatch.setattr(utils, "_urlretrieve", lambda url, name: shutil.copy(url2pathname(urlparse(url).path), name))
    sums = [(f.name, hashlib.md5(f.read_bytes()).hexdigest()) for f in sorted(folder.iterdir())]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [folder.as_uri() + "/"])
    monkeypatch.setattr(datasets.MNIST, "resources", sums)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 4), (1, 5, 4)),
        ((5, 4, 3), (3, 5, 4)),
        ((3, 5, 4), (3, 5, 4)),
        ((5, 4, 1), (1, 5, 4)),
        ((7,), (7,)),
    ],
)
def test_an_npz(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    arrays = some_arrays(shape)
    images = load_images(saved(tmp_path / "mine.npz", arrays))
    assert (images.name, images.classes) == ("mine", 3)
    assert images.x_test.shape == (4, *expected)
    assert images.x_train.dtype == torch.float32 and images.y_train.dtype == torch.int64
    first = arrays["x_test"][0] / np.float32(255)
    seen = images.x_test[0].movedim(0, -1) if shape in ((5, 4, 3), (5, 4, 1)) else images.x_test[0]
    assert np.array_equal(seen.reshape(shape).numpy(), first)


@pytest.mark.parametrize("dtype", ["float64", ">f4", "int16", "float16", "uint16"])
def test_numbers_that_are_no_bytes_stay_as_they_are(tmp_path: Path, dtype: str) -> None:
    arrays = some_arrays((7,)) | {"x_test": np.arange(28).reshape(4, 7).astype(dtype)}
    images = load_images(saved(tmp_path / "mine.npz", arrays))
    assert torch.equal(images.x_test, torch.arange(28.0).reshape(4, 7))


def test_the_split_is_that_of_the_published_code(tmp_path: Path) -> None:
    arrays = {
        "x_train": np.arange(60000, dtype=np.float32)[:, None],
        "y_train": np.arange(60000) % 10,
        "x_test": np.zeros((1, 1), np.float32),
        "y_test": np.zeros(1, np.int64),
    }
    images = load_images(saved(tmp_path / "all.npz", arrays))
    kept, held = random_split(range(60000), [50000, 10000], torch.Generator().manual_seed(1))
    assert images.x_train.flatten().int().tolist() == list(kept)
    assert images.x_validation.flatten().int().tolist() == list(held)
    assert torch.equal(images.y_train, images.x_train.flatten().long() % 10)
    assert torch.equal(images.y_validation, images.x_validation.flatten().long() % 10)
    other, _ = random_split(range(60000), [50000, 10000], torch.Generator().manual_seed(2))
    assert images.x_train.flatten().int().tolist() != list(other)


def test_views_of_a_data_set(device: str) -> None:
    images = load_images()
    assert images.flat.x_train.shape == (1198, 64)
    few = images.head(30, 7)
    parts = (few.x_train, few.y_train, few.x_validation, few.y_validation, few.x_test, few.y_test)
    assert [len(part) for part in parts] == [30, 30, 7, 7, 7, 7]
    assert torch.equal(few.x_train, images.x_train[:30])
    moved = images.to(device, torch.float64)
    assert moved.x_train.dtype == torch.float64 and moved.y_train.dtype == torch.int64
    assert moved.x_train.device.type == moved.y_test.device.type == device


def test_classes_are_counted_over_all_parts(tmp_path: Path) -> None:
    arrays = some_arrays() | {"y_test": np.array([0, 1, 7, 1])}
    assert load_images(saved(tmp_path / "mine.npz", arrays)).classes == 8


# in which order


@pytest.mark.parametrize("kind", ["sequential", "shared", "own"])
def test_every_example_comes_once_per_epoch(kind: Any) -> None:
    drawn = order(kind, 60, 12, epoch=3, seeds=(4, 7))
    assert drawn.shape == (5, 2 if kind == "own" else 1, 12)
    for column in drawn.unbind(1):
        assert sorted(column.flatten().tolist()) == list(range(60))


@pytest.mark.parametrize("kind", ["sequential", "shared", "own"])
def test_a_last_batch_that_is_not_full_is_left_out(kind: Any) -> None:
    drawn = order(kind, 62, 12, epoch=0, seeds=(4, 7))
    assert drawn.shape[0] == 5
    for column in drawn.unbind(1):
        assert len(set(column.flatten().tolist())) == 60


@pytest.mark.parametrize("kind", ["sequential", "shared", "own"])
def test_the_same_arguments_give_the_same_order_whatever_was_drawn_before(kind: Any) -> None:
    first = order(kind, 60, 12, 3, (4, 7))
    torch.rand(5)
    np.random.default_rng(0).random(5)
    assert torch.equal(order(kind, 60, 12, 3, (4, 7)), first)
    assert torch.equal(order(kind, 60, 12, 4, (4, 7)), first) == (kind == "sequential")


def test_sequential_is_the_order_of_the_data() -> None:
    assert torch.equal(order("sequential", 60, 12, 9).flatten(), torch.arange(60))


def test_seeds_differ_in_their_own_order_and_not_in_the_shared_one() -> None:
    own = order("own", 60, 12, 0, (4, 7))
    assert not torch.equal(own[:, 0], own[:, 1])
    assert torch.equal(order("own", 60, 12, 0, (7,))[:, 0], own[:, 1])
    assert torch.equal(order("shared", 60, 12, 0, (4, 7)), order("shared", 60, 12, 0, (1,)))


def test_an_order_is_uniform() -> None:
    firsts = torch.tensor([order("shared", 4, 1, epoch)[0, 0, 0] for epoch in range(2000)])
    assert (firsts.bincount() - 500).abs().max() < 4 * (2000 * 3 / 16) ** 0.5


# what is refused


def test_batches_that_do_not_fit() -> None:
    for batch in (0, 61):
        with pytest.raises(UserError) as error:
            order("shared", 60, batch, 0)
        assert str(error.value) == f"batches of {batch} do not fit 60 examples: choose 1 to 60"
    with pytest.raises(UserError) as error:
        order("random", 60, 10, 0)  # type: ignore[arg-type]
    assert str(error.value) == "unknown order 'random': choose one of sequential, shared, own"


def test_names_and_files_that_do_not_exist(tmp_path: Path) -> None:
    names = "choose one of digits, mnist, fashion_mnist, cifar10, or give the path of an .npz file"
    assert refused("imagenet") == f"unknown data set 'imagenet': {names}"
    assert refused(tmp_path / "none.npz") == f"there is no file {tmp_path / 'none.npz'}: check the path"
    assert refused(tmp_path) == f"unknown data set '{tmp_path}': {names}"


def test_damaged_npz_files(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.npz", some_arrays((9, 9))).read_bytes()
    path = tmp_path / "broken.npz"
    for content in (b"", b"no zip at all", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert refused(path) == f"{path} is cut off or no .npz file: copy it again"
    at = whole.index(b"NUMPY") + 200
    path.write_bytes(whole[:at] + bytes(255 - b for b in whole[at : at + 20]) + whole[at + 20 :])
    assert refused(path) == f"{path} is damaged (Bad CRC-32 for file 'x_train.npy'): copy it again"
    np.save(tmp_path / "one.npy", np.zeros(3))
    path.write_bytes((tmp_path / "one.npy").read_bytes())
    assert refused(path) == f"{path} is cut off or no .npz file: copy it again"
    saved(path, some_arrays() | {"y_train": np.array([{}] * 12, dtype=object)})
    assert refused(path) == (
        f"{path} holds something else than plain arrays (objects, which would be unpickled): save them by numpy.savez"
    )


@pytest.mark.parametrize("key", KEYS)
def test_npz_without_one_of_the_keys(tmp_path: Path, key: str) -> None:
    arrays = some_arrays()
    del arrays[key]
    path = saved(tmp_path / "mine.npz", arrays)
    assert refused(path) == f"{path} has no array '{key}': it must hold x_train, y_train, x_test, y_test"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"y_train": np.arange(11)},
            "x_train has shape (12, 5, 5) and y_train (11,): there must be one label per image",
        ),
        ({"y_test": np.eye(4)}, "x_test has shape (4, 5, 5) and y_test (4, 4): there must be one label per image"),
        ({"x_test": np.array(3)}, "x_test has shape () and y_test (4,): there must be one label per image"),
        (
            {"x_test": np.zeros((0, 5, 5)), "y_test": np.zeros(0, int)},
            "x_test has shape (0, 5, 5) and y_test (0,): there must be one label per image",
        ),
        ({"y_test": np.ones(4)}, "y_test must hold class numbers from 0 on, and has dtype float64, 1.0 ..."),
        (
            {"y_test": np.array([0, 1, -1, 2])},
            "y_test must hold class numbers from 0 on, and has dtype int64, -1 ...",
        ),
        (
            {"y_train": np.arange(12, dtype=np.uint64) + np.uint64(2**63)},
            "y_train has class numbers up to 9223372036854775819",
        ),
        (
            {"y_test": np.array([0, 1, 2, 100_000])},
            "y_test has class numbers up to 100000: number them from 0 on, below 100000",
        ),
        ({"x_train": np.full((12, 2, 2), 1e300)}, "x_train holds values above 1e+18: leave these images out"),
        ({"y_train": np.array(list("abcabcabcabc"))}, "y_train must hold class numbers from 0 on, and has dtype <U1"),
        (
            {"x_train": np.array(["a"] * 12)},
            "x_train has shape (12,) and dtype <U1: give images or rows of numbers",
        ),
        (
            {"x_train": np.zeros((12, 5, 5), complex)},
            "x_train has shape (12, 5, 5) and dtype complex128: give images or rows of numbers",
        ),
        ({"x_train": np.zeros(12)}, "x_train has shape (12,) and dtype float64: give images or rows of numbers"),
        (
            {"x_train": np.full((12, 5, 5), np.nan)},
            "x_train holds values that are not finite: leave these images out",
        ),
        ({"x_test": np.zeros((4, 5, 6))}, "images of (5, 5) to train on and of (5, 6) to test: make them equal"),
        (
            {"x_train": np.zeros((5, 5, 5)), "y_train": np.arange(5)},
            "5 images to train on are too few: give 6 or more",
        ),
    ],
)
def test_npz_whose_arrays_do_not_fit(tmp_path: Path, changed: Arrays, message: str) -> None:
    path = saved(tmp_path / "mine.npz", some_arrays() | changed)
    assert refused(path).startswith(f"{path}: {message}")


def remedy(folder: Path, reason: str) -> str:
    return (
        f"MNIST in {folder} is missing or damaged ({reason}): delete it there and let it be downloaded again "
        "(--download), or name the folder that has it"
    )


def test_missing_files_of_torchvision(tmp_path: Path) -> None:
    reason = "Dataset not found. You can use download=True to download it"
    assert refused("mnist", tmp_path, False) == remedy(tmp_path, reason)
    assert refused("cifar10", tmp_path, False).startswith(f"CIFAR10 in {tmp_path} is missing or damaged (Dataset not ")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:10],
        lambda content: b"",
        lambda content: b"\0" * len(content),
        lambda content: b"\0\0\x0a" + content[3:],
        lambda content: b"\0\0\x0d" + content[3:],
    ],
    ids=["last byte missing", "cut off", "empty", "zeros", "unknown type", "floats"],
)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_files_of_torchvision(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    raw = write_mnist(tmp_path / "MNIST" / "raw", some_arrays((28, 28)))
    assert len(load_images("mnist", tmp_path, False).x_test) == 4
    (raw / name).write_bytes(damage((raw / name).read_bytes()))
    assert refused("mnist", tmp_path, False).startswith(f"MNIST in {tmp_path} is missing or damaged (")


def test_as_many_labels_as_images(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw", some_arrays((28, 28)) | {"y_test": np.zeros(3, int)})
    expected = f"{tmp_path / 'MNIST'}: x_test has shape (4, 28, 28) and y_test (3,): there must be one label per image"
    assert refused("mnist", tmp_path, False) == expected


def test_an_archive_that_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = write_mnist(tmp_path / "there", some_arrays((28, 28)), ".gz", lambda content: gzip.compress(content)[:-20])
    offer(monkeypatch, there)
    reason = "Compressed file ended before the end-of-stream marker was reached"
    assert refused("mnist", tmp_path / "here") == remedy(tmp_path / "here", reason)
    (there / "t10k-images-idx3-ubyte.gz").unlink()
    assert refused("mnist", tmp_path / "other").startswith(
        f"MNIST in {tmp_path / 'other'} is missing or damaged (Error downloading t10k-images-idx3-ubyte.gz: Tried"
    )


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused("mnist", tmp_path / "file").startswith(f"MNIST in {tmp_path / 'file'} is missing or damaged (")


def test_it_is_frozen() -> None:
    images: Images = load_images()
    with pytest.raises(AttributeError):
        images.name = "other"  # type: ignore[misc]
