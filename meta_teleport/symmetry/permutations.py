"""Permutations of units."""

import torch
from torch import Tensor

from meta_teleport.activations import Activation
from meta_teleport.symmetry.group import DiscreteGroup


class Permutation(DiscreteGroup):
    """Permutations as index tensors ``(*tasks, *blocks, k)``: ``(g V)[i] = V[g[i]]``."""

    is_isometric = True

    @classmethod
    def passes(cls, sigma: Activation) -> bool:
        return True

    def identity(self, *tasks: int, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Tensor:
        return torch.arange(self.k, device=device).expand(*tasks, *self.blocks, self.k)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return h.gather(-1, g)

    def inverse(self, g: Tensor) -> Tensor:
        return g.argsort(-1)

    def dual(self, g: Tensor, inverse: Tensor | None = None) -> Tensor:
        return g

    def transpose(self, g: Tensor) -> Tensor:
        return self.inverse(g)

    def squared(self, g: Tensor) -> Tensor:
        return g

    def sample(
        self,
        *tasks: int,
        generator: torch.Generator,
        size: float = 1.0,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """Uniformly random permutations; ``size`` and ``dtype`` have no meaning here."""
        return torch.rand(*tasks, *self.blocks, self.k, generator=generator, dtype=torch.float64).argsort(-1).to(device)

    def apply(self, g: Tensor, v: Tensor) -> Tensor:
        return v.gather(-2, g.unsqueeze(-1).expand(v.shape))

    def apply_right(self, u: Tensor, g: Tensor) -> Tensor:
        return self.apply_inverse(u, self.inverse(g))

    def apply_inverse(self, u: Tensor, g: Tensor) -> Tensor:
        return u.gather(-1, g.unsqueeze(-2).expand(u.shape))
