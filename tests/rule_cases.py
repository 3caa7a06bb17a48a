"""Learned rules without training."""

from typing import Any

import torch

from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.rules.rule import initialized


def trained(update: str = "adam", scale: float = 0.3, **options: Any) -> Equivariant:
    """A rule whose heads are not zero, as if it had been trained; float64."""
    with initialized(5):
        rule = Equivariant(update, hidden_size=8, start=-4.0, size=0.5, **options).double()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for p in rule.parameters():
            p += scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return rule
