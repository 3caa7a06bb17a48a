"""Small modules, each with its symmetry written by hand, a batch and a loss; float64."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meta_teleport.params import Params
from meta_teleport.symmetry.groups import GL, PositiveScaling
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View

Batch = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Self-attention with two heads of width 3 on sequences of width 6, packed as ``nn.MultiheadAttention`` packs."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(6, 18)
        self.out_proj = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:  # (n, length, 6)
        q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in self.in_proj(x).chunk(3, dim=-1))
        weights = (q @ k.mT / 3**0.5).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


def _pair(group: GL | PositiveScaling) -> Symmetry:
    k = group.k
    producers = (View.along("0.weight", (k, 6), 0), View.along("0.bias", (k,), 0))
    last = "2.weight" if isinstance(group, PositiveScaling) else "1.weight"
    return Symmetry((Site("0", group, producers, (View.along(last, (4, k), 1),)),))


def _heads() -> Symmetry:
    def part(start: int) -> tuple[View, View]:
        shape = ((2, 3, 6), (2, 3))
        weight = View("in_proj.weight", 2, shape[0], units=(1,), blocks=(0,), part=(0, start, 6))
        return weight, View("in_proj.bias", 1, shape[1], units=(1,), blocks=(0,), part=(0, start, 6))

    out = View("out_proj.weight", 2, (6, 2, 3), units=(2,), blocks=(1,))
    group = GL(3, (2,))
    return Symmetry((Site("query-key", group, part(6), part(0)), Site("value-output", group, part(12), (out,))))


def _relu() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def _linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))


@dataclass(frozen=True)
class Network:
    """How to make a module, and its symmetry."""

    name: str
    make: Callable[[], nn.Module]
    symmetry: Symmetry
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return self.name

    @property
    def diagonal(self) -> bool:
        return all(isinstance(site.group, PositiveScaling) for site in self.symmetry.sites)

    def build(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make().double()

    def batch(self, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(*self.shape, generator=generator, dtype=torch.float64)
        m = 4 if len(self.shape) == 2 else 6
        return inputs, torch.randn(*self.shape[:-1], m, generator=generator, dtype=torch.float64)

    def elements(self, generator: torch.Generator, size: float = 1.0) -> tuple[Tensor, ...]:
        sites = self.symmetry.sites
        return tuple(site.group.sample(generator=generator, size=size, dtype=torch.float64) for site in sites)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error."""
    return (model(batch[0]) - batch[1]).square().mean()


def parameters(model: nn.Module) -> Params:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def write(model: nn.Module, params: Params) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(params[name])


RELU = Network("relu", _relu, _pair(PositiveScaling(5)), (8, 6))
LINEAR = Network("linear", _linear, _pair(GL(4)), (8, 6))
HEADS = Network("heads", Attention, _heads(), (3, 4, 6))
NETWORKS = (RELU, LINEAR, HEADS)
