"""Twelve small trainings that go well without teleports: five networks, and SGD, momentum, Adam and AdamW.

Examples never run out, so that the loss does not fall to rounding: digits are shifted by a pixel at most and get
noise at every step, factors are fitted to fresh noisy measurements. Step sizes are constant, the best of a coarse grid
for the plain optimizer (``tuning`` in the results).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from experiments.lab.networks import networks
from meta_teleport.tasks.images import Images

BATCH = 32
NOISE = 0.3
SIZE, RANK, LABEL_NOISE = 64, 8, 0.3

Batch = tuple[Tensor, Tensor]
Rate = Callable[..., Optimizer]
GRIDS: dict[str, tuple[Rate, tuple[float, ...]]] = {
    "SGD": (SGD, (0.03, 0.1, 0.3)),
    "momentum": (partial(SGD, momentum=0.9), (0.01, 0.03, 0.1)),
    "Adam": (Adam, (0.001, 0.003, 0.01)),
    "AdamW": (AdamW, (0.001, 0.003, 0.01)),
}


@dataclass(frozen=True)
class Problem:
    """A network, the examples that it sees, its loss, and the optimizer that trains it."""

    network: str
    optimizer: str
    build: Callable[[], nn.Module]
    batches: Callable[[int], Iterator[Batch]]
    loss: Callable[[nn.Module, Any], Tensor]

    @property
    def name(self) -> str:
        """Network and optimizer."""
        return f"{self.network}, {self.optimizer}"


def problems(images: Images) -> list[Problem]:
    """The twelve."""
    normed = networks(images)
    builds = {"MLP": _mlp, "CNN": _cnn, "CNN with BatchNorm": normed["CNN"], "transformer": normed["transformer"]}
    pairs = [
        *(("MLP", name) for name in GRIDS),
        ("CNN", "SGD"),
        ("CNN", "Adam"),
        ("CNN with BatchNorm", "momentum"),
        ("CNN with BatchNorm", "AdamW"),
        ("transformer", "Adam"),
        ("transformer", "AdamW"),
    ]
    seen = partial(shifted, images)
    shown = [Problem(network, name, builds[network], seen, cross_entropy) for network, name in pairs]
    return shown + [Problem("factorisation", name, _factors, measurements, squared_error) for name in ("SGD", "Adam")]


def shifted(images: Images, seed: int) -> Iterator[Batch]:
    """Batches of digits, moved by a pixel at most, with noise."""
    generator = torch.Generator().manual_seed(seed)
    x, y = images.x_train, images.y_train
    while True:
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        dx, dy = torch.randint(-1, 2, (2,), generator=generator).tolist()
        moved = F.pad(x[chosen], (1, 1, 1, 1))[:, :, 1 + dy : 9 + dy, 1 + dx : 9 + dx]
        yield moved + NOISE * torch.randn(moved.shape, generator=generator), y[chosen]


def measurements(seed: int) -> Iterator[Batch]:
    """Batches of inputs with noisy products of one matrix of low rank, of condition number 10."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(SIZE, RANK, generator=generator)).Q for _ in range(2))
    matrix = u * torch.logspace(0, -1, RANK) @ v.T
    while True:
        x = torch.randn(BATCH, SIZE, generator=generator)
        y = x @ matrix
        yield x, y + LABEL_NOISE * y.std() * torch.randn(y.shape, generator=generator)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Of classes."""
    return F.cross_entropy(model(batch[0]), batch[1])


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Summed over outputs, the mean over examples."""
    return (model(batch[0]) - batch[1]).square().sum(1).mean()


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def _cnn() -> nn.Module:
    convolutions = nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 10))


def _factors() -> nn.Module:
    return nn.Sequential(nn.Linear(SIZE, RANK, bias=False), nn.Linear(RANK, SIZE, bias=False))
