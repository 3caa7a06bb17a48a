"""A decoder-only transformer as people write it: pre-norm, rotary positions, no biases, no dropout."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meta_teleport.errors import UserError

Feedforward = Literal["squared_relu", "swiglu"]
BASE = 10_000.0


class Decoder(nn.Module):
    """Tokens ``(n, length)`` to the logits of the next one, ``(n, length, vocabulary)``.

        h_0 = E[x],   h <- h + A(norm h),   h <- h + F(norm h)   for every block,   logits = U norm h

    with ``norm h = h / sqrt(mean h^2 + eps)`` (no scale), A causal attention under rotary positions (Su et al. 2021),
    and F either ``W_2 relu(W_1 h)^2`` (So et al. 2021) or ``W_2 (silu(W_1 h) * W_3 h)`` (Shazeer 2020). Any orthogonal
    matrix may turn the residual stream h: E, A's and F's output maps write it, all other maps read it.

    Raises ``UserError`` for sizes that do not fit each other.
    """

    def __init__(
        self,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        vocabulary: int = 256,
        feedforward: Feedforward = "squared_relu",
    ) -> None:
        super().__init__()
        if min(width, layers, heads, vocabulary) < 1 or width % (2 * heads):
            raise UserError(
                f"{layers} layers of width {width} with {heads} heads make no decoder: give 1 or more of each, and a "
                "width that is a multiple of twice the heads"
            )
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, feedforward) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens)
        for block in self.blocks:
            h = block(h)
        return self.head(_normalized(h))


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a normalization, on a residual stream ``(n, length, width)``."""

    def __init__(self, width: int, heads: int, feedforward: Feedforward) -> None:
        super().__init__()
        hidden, self.heads = 4 * width, heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate = None if feedforward == "squared_relu" else nn.Linear(width, hidden, bias=False)
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self._attend(_normalized(h))
        x = _normalized(h)
        inner = F.relu(self.up(x)).square() if self.gate is None else F.silu(self.gate(x)) * self.up(x)
        return h + self.down(inner)

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(_turned(q), _turned(k), v, is_causal=True)  # (n, heads, length, k)
        return self.out(mixed.transpose(-2, -3).flatten(-2))


def _normalized(h: Tensor) -> Tensor:
    return F.rms_norm(h, h.shape[-1:])


def _turned(x: Tensor) -> Tensor:
    """Rotary positions: pair j of position t turned by the angle ``t BASE^(-2 j / k)``; x is ``(n, heads, length, k)``,
    pair j its entries j and j + k / 2."""
    half = x.shape[-1] // 2
    rates = BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32).unsqueeze(1) * rates  # (length, k / 2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.split(half, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
