"""Images to classify: MNIST, Fashion-MNIST and CIFAR-10 through torchvision, scikit-learn's digits, any ``.npz``.

A data set is a handful of tensors that live on one device, and mini-batches are indices into them: see :func:`order`.
Pixels are in [0, 1], as torchvision's ``ToTensor`` gives them.

A sixth of the training images is set aside to choose settings on: 10,000 of the 60,000 of MNIST, the same ones in the
same order as in the code of Zhao et al. 2024.
"""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.runs.files import read_arrays

Order = Literal["sequential", "shared", "own"]

KEYS = ("x_train", "y_train", "x_test", "y_test")
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}
VALIDATION_PART = 6
SPLIT_SEED = 1
CLASSES, LARGEST = 100_000, 1e18
"""Bounds on labels, each of which has a column, and on values, whose squares float32 must hold."""
DIGITS_TEST = 360
DAMAGE = (RuntimeError, OSError, ValueError, EOFError, AssertionError, KeyError, TypeError, zlib.error)
"""What torchvision raises for files that are missing, cut off, or hold something else."""


@dataclass(frozen=True)
class Images:
    """Images ``(n, c, h, w)`` (or rows of features ``(n, d)``) with labels ``(n,)`` from 0 to ``classes - 1``, to train
    on, to choose settings on (validation), and to report (test)."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_validation: Tensor
    y_validation: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return 1 + int(torch.cat([self.y_train, self.y_validation, self.y_test]).max())

    @property
    def flat(self) -> "Images":
        """The same with every image as one row, ``(n, c h w)``."""
        return replace(self, **{f"x_{part}": getattr(self, f"x_{part}").flatten(1) for part in PARTS})

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> "Images":
        """The same on a device, with pixels of that dtype."""
        moved = {f"x_{part}": getattr(self, f"x_{part}").to(device, dtype) for part in PARTS}
        return replace(self, **moved, **{f"y_{part}": getattr(self, f"y_{part}").to(device) for part in PARTS})

    def head(self, train: int, rest: int) -> "Images":
        """The first ``train`` training images and the first ``rest`` of the two other parts, for quick looks."""
        counts = {"train": train, "validation": rest, "test": rest}
        return replace(
            self, **{f"{v}_{part}": getattr(self, f"{v}_{part}")[:n] for part, n in counts.items() for v in "xy"}
        )


PARTS = ("train", "validation", "test")


def load_images(data: str | Path = "digits", folder: str | Path = "data", download: bool = True) -> Images:
    """A data set by name - digits, mnist, fashion_mnist, cifar10 - or by the path of an ``.npz``.

    ``folder`` is where torchvision keeps its files, and with ``download`` (and a network) where it puts them. An
    ``.npz`` holds the arrays ``x_train, y_train, x_test, y_test``: images ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c,
    h, w)``, or features ``(n, d)``; bytes are divided by 255, other numbers are taken as they are. The digits (1797 of
    8 x 8 pixels, part of scikit-learn) need neither.

    Raises ``UserError`` for names that do not exist, and for files that are missing, damaged or of another form.
    """
    data, folder = os.path.expanduser(data), os.path.expanduser(folder)
    if Path(data).suffix == ".npz":
        return _split(Path(data).stem, *_read_npz(Path(data)))
    if data == "digits":
        return _split("digits", *_read_digits())
    if data not in TORCHVISION:
        names = ", ".join(["digits", *TORCHVISION])
        raise UserError(f"unknown data set '{data}': choose one of {names}, or give the path of an .npz file")
    return _split(str(data), *_read_torchvision(str(data), Path(folder), download))


def order(kind: Order, count: int, batch: int, epoch: int, seeds: Sequence[int] = (0,)) -> Tensor:
    """Which of ``count`` examples every step of an epoch sees.

    *sequential*: always in the order of the data, as the published code does, ``(steps, 1, batch)``. *shared*: shuffled
    anew for every epoch, the same for all seeds, ``(steps, 1, batch)``. *own*: shuffled for every seed and epoch,
    ``(steps, seeds, batch)``. A last batch that would not be full is left out. The same arguments give the same order.

    Raises ``UserError`` for an unknown kind and for a batch larger than the data.
    """
    if kind not in get_args(Order):
        raise UserError(f"unknown order '{kind}': choose one of {', '.join(get_args(Order))}")
    if not 1 <= batch <= count:
        raise UserError(f"batches of {batch} do not fit {count} examples: choose 1 to {count}")
    kept = count - count % batch
    if kind == "sequential":
        return torch.arange(kept).reshape(-1, 1, batch)
    drawn = [_shuffled(seed, count, epoch) for seed in ((0,) if kind == "shared" else seeds)]
    return torch.stack([indices[:kept].reshape(-1, batch) for indices in drawn], dim=1)


def _shuffled(seed: int, count: int, epoch: int) -> Tensor:
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.randperm(count, generator=torch.Generator().manual_seed(int(state[0]) % 2**63))


def _split(name: str, x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor) -> Images:
    drawn = torch.randperm(len(x_train), generator=torch.Generator().manual_seed(SPLIT_SEED))
    kept, held = drawn.split([len(drawn) - len(drawn) // VALIDATION_PART, len(drawn) // VALIDATION_PART])
    return Images(name, x_train[kept], y_train[kept], x_train[held], y_train[held], x_test, y_test)


def _read_digits() -> tuple[Tensor, ...]:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.images).float().unsqueeze(1) / 16
    y = torch.from_numpy(found.target).long()
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, test = drawn[DIGITS_TEST:], drawn[:DIGITS_TEST]
    return x[train], y[train], x[test], y[test]


def _read_torchvision(name: str, folder: Path, download: bool) -> tuple[Tensor, ...]:
    from torchvision import datasets

    arrays: list[np.ndarray] = []
    for train in (True, False):
        try:
            found: Any = getattr(datasets, TORCHVISION[name])(str(folder), train=train, download=download)
        except DAMAGE as error:
            raise UserError(
                f"{TORCHVISION[name]} in {folder} is missing or damaged ({_reason(error)}): delete it there and let it "
                "be downloaded again (--download), or name the folder that has it"
            ) from None
        arrays += [np.asarray(found.data), np.asarray(found.targets)]
    return _checked(folder / TORCHVISION[name], arrays)


def _read_npz(path: Path) -> tuple[Tensor, ...]:
    arrays = read_arrays(path, KEYS)
    for key in KEYS:
        if key not in arrays:
            raise UserError(f"{path} has no array '{key}': it must hold {', '.join(KEYS)}")
    return _checked(path, [arrays[key] for key in KEYS])


def _checked(path: Path, arrays: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
    """Images and labels to train on, images and labels to test, as tensors."""
    x_train, y_train, x_test, y_test = arrays
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if y.ndim != 1 or x.ndim < 1 or len(x) != len(y) or not len(y):
            raise UserError(
                f"{path}: x_{part} has shape {x.shape} and y_{part} {y.shape}: there must be one label per image"
            )
        if y.dtype.kind not in "iu" or y.min() < 0:
            raise UserError(
                f"{path}: y_{part} must hold class numbers from 0 on, and has dtype {y.dtype}, {np.sort(y)[0]} ..."
            )
        if y.max() >= CLASSES:
            raise UserError(
                f"{path}: y_{part} has class numbers up to {y.max()}: number them from 0 on, below {CLASSES}"
            )
        if x.dtype.kind not in "fiu" or x.ndim not in (2, 3, 4):
            raise UserError(f"{path}: x_{part} has shape {x.shape} and dtype {x.dtype}: give images or rows of numbers")
        if x.dtype.kind == "f" and x.size and not float(np.abs(x).max()) < LARGEST:
            what = f"values above {LARGEST:.0e}" if np.isfinite(x).all() else "values that are not finite"
            raise UserError(f"{path}: x_{part} holds {what}: leave these images out")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UserError(
            f"{path}: images of {x_train.shape[1:]} to train on and of {x_test.shape[1:]} to test: make them equal"
        )
    if len(x_train) < VALIDATION_PART:
        raise UserError(f"{path}: {len(x_train)} images to train on are too few: give {VALIDATION_PART} or more")
    return _pixels(x_train), _labels(y_train), _pixels(x_test), _labels(y_test)


def _labels(y: np.ndarray) -> Tensor:
    return torch.from_numpy(y.astype(np.int64))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _pixels(images: np.ndarray) -> Tensor:
    """Images as ``(n, c, h, w)``, features as they are; bytes as numbers from 0 to 1."""
    x = torch.from_numpy(images.astype(np.float32))
    x = x / 255 if images.dtype == np.uint8 else x
    if x.ndim == 3:
        return x.unsqueeze(1)
    return x.movedim(-1, 1).contiguous() if x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3) else x
