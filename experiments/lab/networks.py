"""Small networks with norms, shortcuts and attention, of a few thousand parameters, for images ``(n, c, h, w)``.

The first layer brings 8 x 8 images to 4 x 4 places and 28 x 28 images to 7 x 7; the transformer sees 16 patches of
both. Channels come in eights, for which batched convolutions have fast kernels. Attention is written out, so that it
can be differentiated twice.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meta_teleport.errors import UserError
from meta_teleport.tasks.images import Images

CHANNELS = 8
WIDTH, HEADS, DEPTH, PATCHES = 16, 2, 1, 4
LARGE = 16
"""Images of at least that many pixels a side are reduced by 4, smaller ones by 2."""


class ConvNet(nn.Module):
    """Two convolutions, each with BatchNorm and ReLU, the mean over places, and a linear layer."""

    def __init__(self, colours: int, stride: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _reducing(colours, CHANNELS, stride), nn.BatchNorm2d(CHANNELS)
        self.conv2, self.norm2 = _reducing(CHANNELS, 2 * CHANNELS, 2), nn.BatchNorm2d(2 * CHANNELS)
        self.head = nn.Linear(2 * CHANNELS, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    """A residual block; where the shape changes, the shortcut is a convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _reducing(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _reducing(outputs, outputs, 1), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A convolution and two residual blocks, the mean over places, and a linear layer."""

    def __init__(self, colours: int, stride: int, classes: int) -> None:
        super().__init__()
        self.stem, self.norm = _reducing(colours, CHANNELS, stride), nn.BatchNorm2d(CHANNELS)
        self.blocks = nn.Sequential(Block(CHANNELS, CHANNELS, 1), Block(CHANNELS, 2 * CHANNELS, 2))
        self.head = nn.Linear(2 * CHANNELS, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Layer(nn.Module):
    """Attention and a ReLU network, each behind a LayerNorm and added to what comes in, ``(n, tokens, width)``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.mix = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.norm1(x))
        return x + self.down(F.relu(self.up(self.norm2(x))))

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.mix((weights @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Patches of the image as tokens, a layer of attention, the mean over tokens, and a linear layer."""

    def __init__(self, colours: int, patch: int, classes: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(colours * patch**2, WIDTH)
        self.place = nn.Parameter(0.5 * torch.randn(PATCHES**2, WIDTH))
        self.layers = nn.Sequential(*(Layer() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(F.unfold(x, self.patch, stride=self.patch).mT) + self.place
        return self.head(self.norm(self.layers(tokens)).mean(1))


def networks(images: Images) -> dict[str, Callable[[], nn.Module]]:
    """What builds each network for these images, by name.

    Raises ``UserError`` for rows of features, and for images that are not square or not of a multiple of four pixels.
    """
    shape = tuple(images.x_train.shape[1:])
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] % PATCHES:
        raise UserError(
            f"{images.name}: inputs of shape {shape} do not fit the networks: give square images with sides that are "
            f"multiples of {PATCHES}"
        )
    colours, size, _ = shape
    stride = 4 if size >= LARGE else 2
    return {
        "CNN": partial(ConvNet, colours, stride, images.classes),
        "ResNet": partial(ResNet, colours, stride, images.classes),
        "transformer": partial(Transformer, colours, size // PATCHES, images.classes),
    }


def _reducing(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """A convolution that divides the sides by ``stride``. It has no bias, as a norm follows."""
    size = 3 if stride < 4 else 5
    return nn.Conv2d(inputs, outputs, size, stride, padding=1, bias=False)
