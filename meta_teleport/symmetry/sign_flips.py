"""Signs of units."""

import torch
from torch import Tensor

from meta_teleport.activations import Activation
from meta_teleport.symmetry.diagonal_groups import DiagonalGroup
from meta_teleport.symmetry.group import DiscreteGroup


class SignFlips(DiscreteGroup, DiagonalGroup):
    """Diagonal matrices with entries 1 and -1, which act around odd activations such as tanh."""

    is_isometric = True
    needs = "an odd activation"

    @classmethod
    def passes(cls, sigma: Activation) -> bool:
        z = torch.linspace(-4, 4, 17, dtype=torch.float64)
        return torch.equal(sigma(-z), -sigma(z))

    def inverse(self, g: Tensor) -> Tensor:
        return g

    def sample(
        self,
        *tasks: int,
        generator: torch.Generator,
        size: float = 1.0,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """Every sign with probability 1/2; ``size`` has no meaning here."""
        bits = torch.randint(2, (*tasks, *self.blocks, self.k), generator=generator)
        return (2 * bits - 1).to(device, dtype or torch.get_default_dtype())
