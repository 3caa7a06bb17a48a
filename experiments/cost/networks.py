"""The networks whose teleports are timed, each with its loss, a batch of random data and the symmetry that is found."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import meta_teleport as mt
from meta_teleport.symmetry.symmetry import Symmetry

CLASSES = 10
TOKENS = 64

Batch = tuple[Tensor, Tensor]


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch normalization beside a shortcut, as in ResNet-20."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        stride = outside // inside
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outside) for _ in range(2))
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(h)) + self.shortcut(x))


class Encoder(nn.Module):
    """A transformer encoder that gives one row of logits per token."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm, self.logits = nn.LayerNorm(width), nn.Linear(width, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.logits(self.norm(x))


@dataclass(frozen=True)
class Network:
    """A model with its batch."""

    model: nn.Module
    batch: Batch

    def to(self, device: str) -> "Network":
        inputs, targets = self.batch
        return Network(self.model.to(device), (inputs.to(device), targets.to(device)))

    @cached_property
    def symmetry(self) -> Symmetry:
        return self.detect()

    def detect(self) -> Symmetry:
        return mt.find_symmetries(self.model, self.batch[0])

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


Build = Callable[[], Network]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def mlp(widths: tuple[int, ...] = (784, 128, 64, CLASSES), points: int = 128, relu: bool = True) -> Network:
    """With ReLU a positive scaling acts at every hidden layer; without, the general linear group."""
    layers: list[nn.Module] = []
    for d, k in pairwise(widths):
        layers += [nn.ReLU()] if relu and layers else []
        layers.append(nn.Linear(d, k))
    return Network(nn.Sequential(*layers), (torch.randn(points, widths[0]), torch.randint(CLASSES, (points,))))


def cnn(width: int = 16, points: int = 32) -> Network:
    """Seven convolutions: ResNet-20 with one block of each width in place of three."""
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *(Residual(width * a, width * b) for a, b in ((1, 1), (1, 2), (2, 4))),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, CLASSES),
    )
    return Network(model, (torch.randn(points, 3, 32, 32), torch.randint(CLASSES, (points,))))


def transformer(width: int = 128, layers: int = 2, length: int = 64, points: int = 16) -> Network:
    tokens = torch.randint(TOKENS, (points, length + 1))
    return Network(Encoder(width, layers), (tokens[:, :-1], tokens[:, 1:]))


def vit_b_16() -> Network:
    import torchvision

    return Network(
        torchvision.models.vit_b_16(num_classes=CLASSES), (torch.randn(2, 3, 224, 224), torch.randint(CLASSES, (2,)))
    )


def small_vit() -> Network:
    import torchvision

    model = torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=CLASSES)
    return Network(model, (torch.randn(2, 3, 32, 32), torch.randint(CLASSES, (2,))))


NETWORKS: dict[str, Build] = {"MLP": mlp, "CNN": cnn, "transformer": transformer}
TOY_NETWORKS: dict[str, Build] = {
    "MLP": lambda: mlp((8, 6, 5, CLASSES), 4),
    "CNN": lambda: cnn(2, 2),
    "transformer": lambda: transformer(16, 1, 4, 2),
}
