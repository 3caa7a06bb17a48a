"""A small decoder-only transformer, with low-rank adapters beside its linear maps or without, and its symmetry."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meta_teleport.detection.detect import find_symmetries
from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.language import LENGTH, VOCABULARY

Names = Callable[[str], bool]
MOST = {"layers": 100, "pretraining_steps": 100_000, "points": 100_000, "test": 100_000}
ATTENTION = ("query", "key", "value", "out")


@dataclass(frozen=True)
class Sizes:
    """Of the model, its adapters (rank 0: none), its data and its pre-training.

    Raises ``UserError`` for sizes that do not fit each other.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    rank: int = 8
    batch: int = 8
    points: int = 4096
    test: int = 128
    shift: float = 0.5
    pretraining_steps: int = 600
    pretraining_batch: int = 16
    pretraining_lr: float = 3e-3

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise UserError(
                    f"{name} {getattr(self, name)} is too much for a small transformer: give {most} at most"
                )
        if self.layers < 1 or self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise UserError(
                f"{self.layers} layers of width {self.width} with {self.heads} heads make no transformer: give 1 or "
                "more of each, and a width that is a multiple of the heads"
            )
        if not 0 <= self.rank <= self.width:
            raise UserError(f"rank {self.rank} does not fit width {self.width}: choose 1 to {self.width}")
        for name in ("batch", "pretraining_batch"):
            if not 1 <= getattr(self, name) <= self.points:
                raise UserError(
                    f"{name} {getattr(self, name)} does not fit {self.points} points: choose 1 to {self.points}"
                )
        if self.test < 1 or self.pretraining_steps < 0:
            raise UserError(f"test {self.test} must be 1 or more, pretraining_steps {self.pretraining_steps} 0 or more")
        if not self.pretraining_lr >= 0:
            raise UserError(f"pretraining_lr {self.pretraining_lr} is not possible: give 0 or more")
        if not 0 <= self.shift <= 1:
            raise UserError(f"shift {self.shift} is not possible: choose 0 to 1")


class Adapted(nn.Module):
    """``W x + B A x`` with W ``(m, d)``, A ``(r, d)``, B ``(m, r)`` (Hu et al. 2022); W x alone with rank 0."""

    def __init__(self, d: int, m: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.weight = nn.Parameter(torch.empty(m, d))
        if rank:
            self.A, self.B = nn.Parameter(torch.empty(rank, d)), nn.Parameter(torch.empty(m, rank))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + x @ self.A.T @ self.B.T if self.rank else x @ self.weight.T


class Block(nn.Module):
    """Causal attention and an MLP, each behind a normalization, on a residual stream ``(n, length, width)``."""

    def __init__(self, width: int, heads: int, rank: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (Adapted(width, width, rank) for _ in range(4))
        self.up, self.down = Adapted(width, 2 * width, rank), Adapted(2 * width, width, rank)

    def forward(self, x: Tensor) -> Tensor:
        h = F.layer_norm(x, x.shape[-1:])
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for f in (self.query, self.key, self.value))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        x = x + self.out(mixed.transpose(-2, -3).flatten(-2))
        return x + self.down(F.gelu(self.up(F.layer_norm(x, x.shape[-1:]))))


class Decoder(nn.Module):
    """A transformer that gives the logits of the next token, ``(n, length)`` to ``(n, length, vocabulary)``."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(VOCABULARY, sizes.width))
        self.position = nn.Parameter(torch.empty(LENGTH, sizes.width))
        self.blocks = nn.Sequential(*(Block(sizes.width, sizes.heads, sizes.rank) for _ in range(sizes.layers)))
        self.logits = nn.Parameter(torch.empty(VOCABULARY, sizes.width))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(F.one_hot(tokens, VOCABULARY).to(self.token.dtype) @ self.token + self.position)
        return F.layer_norm(x, x.shape[-1:]) @ self.logits.T


def structure(sizes: Sizes) -> Decoder:
    """The model without numbers: every task brings parameters of its own."""
    with torch.device("meta"):
        return Decoder(sizes)


def is_adapter(name: str) -> bool:
    """Whether a parameter is a factor of an adapter."""
    return name.endswith((".A", ".B"))


def is_attention(name: str) -> bool:
    """Whether a parameter is a query, key, value or output matrix."""
    return name.endswith(tuple(f".{role}.weight" for role in ATTENTION))


def initial(model: Decoder, count: int, generator: torch.Generator, wanted: Names = lambda name: True) -> Params:
    """Fresh values of the ``wanted`` parameters: ``N(0, 1 / fan-in)``, embeddings ``N(0, 1)``, and B at zero."""
    params = {}
    for name, p in model.named_parameters():
        if wanted(name):
            fan_in = 1 if name in ("token", "position") else p.shape[-1]
            drawn = torch.randn(count, *p.shape, generator=generator, dtype=torch.float32) / fan_in**0.5
            params[name] = torch.zeros_like(drawn) if name.endswith(".B") else drawn
    return params


@cache
def symmetry_among(sizes: Sizes, trained: Names) -> Symmetry:
    """The sites that detection finds in a model, those that move ``trained`` parameters alone."""
    model = Decoder(sizes)
    drawn = initial(model, 1, torch.Generator().manual_seed(0))
    model.load_state_dict({name: p[0] for name, p in drawn.items()})
    found = find_symmetries(model, torch.zeros(2, LENGTH, dtype=torch.long))
    return replace(found, sites=tuple(site for site in found.sites if all(map(trained, site.parameters))))
