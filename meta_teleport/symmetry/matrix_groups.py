"""Groups of matrices ``(*tasks, *blocks, k, k)``."""

import torch
from torch import Tensor

from meta_teleport.linalg.exponential import matrix_exp, matrix_exp_pair
from meta_teleport.symmetry.group import Group


class MatrixGroup(Group):
    """A group of matrices, by plain linear algebra."""

    @property
    def algebra_shape(self) -> tuple[int, ...]:
        return (*self.blocks, self.k, self.k)

    def identity(self, *tasks: int, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Tensor:
        return torch.eye(self.k, dtype=dtype, device=device).expand(*tasks, *self.blocks, self.k, self.k)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return g @ h

    def inverse(self, g: Tensor) -> Tensor:
        return torch.linalg.inv(g)

    def exp(self, algebra: Tensor) -> Tensor:
        return matrix_exp(algebra)

    def apply(self, g: Tensor, v: Tensor) -> Tensor:
        return g @ v

    def apply_right(self, u: Tensor, g: Tensor) -> Tensor:
        return u @ g

    def apply_inverse(self, u: Tensor, g: Tensor) -> Tensor:
        return torch.linalg.solve(g, u, left=False)

    def transpose(self, g: Tensor) -> Tensor:
        return g.mT

    def condition(self, g: Tensor, inverse: Tensor | None = None) -> Tensor:
        """``||g||_1 ||g^-1||_1``, without an ``inverse`` in float64."""
        if inverse is None:
            return torch.linalg.cond(g.double(), p=1)
        return torch.linalg.matrix_norm(g, 1) * torch.linalg.matrix_norm(inverse, 1)


class GL(MatrixGroup):
    """The general linear group of invertible k x k matrices."""

    has_gauges = True
    has_rotations = True

    def exp_pair(self, algebra: Tensor) -> tuple[Tensor, Tensor]:
        return matrix_exp_pair(algebra)


class Orthogonal(MatrixGroup):
    """The orthogonal group; its algebra coordinates are any k x k matrix, of which the skew part counts."""

    is_isometric = True
    has_rotations = True

    def tangent(self, algebra: Tensor) -> Tensor:
        return (algebra - algebra.mT) / 2

    def dual(self, g: Tensor, inverse: Tensor | None = None) -> Tensor:
        return g

    def inverse(self, g: Tensor) -> Tensor:
        return g.mT

    def exp(self, algebra: Tensor) -> Tensor:
        return matrix_exp(self.tangent(algebra))

    def exp_pair(self, algebra: Tensor) -> tuple[Tensor, Tensor]:
        g = self.exp(algebra)
        return g, g.mT

    def apply_inverse(self, u: Tensor, g: Tensor) -> Tensor:
        return u @ g.mT


class FirstOrder(MatrixGroup):
    """The group-like pair of earlier code: ``exp(T) = I + T`` and ``U (2 I - g)`` in place of ``U g^-1``.

    Not a group: the loss moves by O(|T|^2) (relative drift 6e-3 at norm 1). It is here to reproduce published
    results, and as the control that the invariance law must reject.
    """

    is_exact = False

    def exp(self, algebra: Tensor) -> Tensor:
        return algebra + torch.eye(self.k, dtype=algebra.dtype, device=algebra.device)

    def inverse(self, g: Tensor) -> Tensor:
        return 2 * torch.eye(self.k, dtype=g.dtype, device=g.device) - g

    def apply_inverse(self, u: Tensor, g: Tensor) -> Tensor:
        return u @ self.inverse(g)
