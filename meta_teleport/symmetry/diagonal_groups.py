"""Groups of diagonal matrices, stored as their diagonals ``(*tasks, *blocks, k)``."""

import torch
from torch import Tensor

from meta_teleport.activations import Activation
from meta_teleport.symmetry.group import Group


class DiagonalGroup(Group):
    """A group that acts unit by unit."""

    is_diagonal = True

    @property
    def algebra_shape(self) -> tuple[int, ...]:
        return (*self.blocks, self.k)

    def identity(self, *tasks: int, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Tensor:
        return torch.ones(*tasks, *self.blocks, self.k, dtype=dtype, device=device)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return g * h

    def inverse(self, g: Tensor) -> Tensor:
        return 1 / g

    def transpose(self, g: Tensor) -> Tensor:
        return g

    def apply(self, g: Tensor, v: Tensor) -> Tensor:
        return g.unsqueeze(-1) * v

    def apply_right(self, u: Tensor, g: Tensor) -> Tensor:
        return u * g.unsqueeze(-2)

    def apply_inverse(self, u: Tensor, g: Tensor) -> Tensor:
        return u / g.unsqueeze(-2)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1)


class PositiveScaling(DiagonalGroup):
    """Diagonal matrices with positive entries."""

    has_gauges = True
    needs = "a positively homogeneous activation"

    @classmethod
    def passes(cls, sigma: Activation) -> bool:
        return sigma.homogeneous

    def exp(self, algebra: Tensor) -> Tensor:
        return algebra.exp()

    def condition(self, g: Tensor, inverse: Tensor | None = None) -> Tensor:
        """1, however uneven g is: it multiplies every weight by one number, so its relative error stays."""
        return torch.where((g > 0).all(-1), 1.0, torch.inf)
