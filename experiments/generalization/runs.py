"""The runs of generalization.py: base runs, and variants that go on from their weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from experiments.lab.image_training import Plan, train
from experiments.lab.progress import say
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.tasks.images import Images

BATCH, TELEPORT_BATCH = 20, 2000
CIFAR10_SIZE = 3072
SIZES = {"sharpness lower": 5e-2, "sharpness raise": 5e-2, "curvature lower": 5e-2, "curvature raise": 2e-1}
FASHION_SIZES = {"sharpness lower": 3e-1, "sharpness raise": 1e-1, "curvature lower": 3e-3, "curvature raise": 5e-3}


@dataclass(frozen=True)
class Setting:
    """Published settings of one data set: hidden widths, step size of SGD, step sizes of the teleports by aim."""

    hidden: tuple[int, int]
    lr: float
    sizes: dict[str, float]


@dataclass(frozen=True)
class Epochs:
    """When the second part begins to teleport, when the first part does, and when both end."""

    early: int = 10
    branch: int = 20
    end: int = 40


SMOKE_EPOCHS = Epochs(2, 3, 4)


def setting_of(images: Images) -> Setting:
    """By the size of an image and the name of the data set; the few digits take larger steps."""
    if images.name == "digits":
        return Setting((16, 10), 0.3, SIZES)
    if images.x_train.shape[1] == CIFAR10_SIZE:
        return Setting((32, 10), 2e-2, SIZES)
    return Setting((16, 10), 1e-2, FASHION_SIZES if images.name == "fashion_mnist" else SIZES)


def copies_of(images: Images, seeds: Sequence[int], count: int) -> Ensemble:
    """``count`` settings of SGD, the same for all."""
    setting = setting_of(images)
    widths = (images.x_train.shape[1], *setting.hidden, images.classes)
    sgd = partial(torch.optim.SGD, lr=setting.lr)
    return Ensemble(lambda: MLP(widths), seeds, [sgd] * count, device=images.x_train.device)


def base_runs(images: Images, seeds: Sequence[int], epochs: Epochs, folder: Path) -> dict[int, Ensemble]:
    """One run per seed, as it is at the two epochs from which others go on."""
    found = {}
    before, begin = None, 0
    for end in (epochs.early, epochs.branch):
        copies = copies_of(images, seeds, 1)
        if before is not None:
            place(before, copies)
        keep = folder / f"base-{end}.safetensors"
        train(copies, images, Plan(end - begin, BATCH, "shared", begin), label=f"{images.name} base", keep=keep)
        found[end] = before = copies
        begin = end
    say(f"{images.name}: {len(seeds)} base runs of {epochs.branch} epochs")
    return found


@torch.no_grad()
def place(base: Ensemble, copies: Ensemble) -> None:
    """Gives every setting of ``copies`` the weights of ``base`` (one setting, at least as many seeds)."""
    for name, p in copies.params.items():
        start: Tensor = base.params[name].detach()[: len(copies.seeds)]
        p.data.copy_(start.repeat(len(copies.settings), *(1,) * (p.ndim - 1)))


def teleport_batch(images: Images, number: int, size: int = TELEPORT_BATCH) -> tuple[Tensor, Tensor]:
    """Batch ``number`` of those that teleports see: in the order of the data, over and over."""
    size = min(size, len(images.x_train) // 2)
    start = number % (len(images.x_train) // size) * size
    return images.x_train[start : start + size], images.y_train[start : start + size]
