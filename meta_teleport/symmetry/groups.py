"""Groups that act on the units of a layer.

A group is its size ``k`` and a handful of pure functions; its elements are plain tensors with leading task
dimensions, so a batch of elements is one tensor:

    identity, compose, inverse, exp          the group and the exponential map of its Lie algebra
    sample                                   random elements near the identity
    apply(g, V) = g V                        on what produces the units, V of shape (*tasks, k, d)
    apply_inverse(U, g) = U g^-1             on what consumes them, U of shape (*tasks, m, k)

    dual(g) = g^-T                           on gradients: what g does to V, dual(g) does to dL/dV
    squared(g)                               g with its entries squared, which moves variances

General linear and orthogonal elements are ``(*tasks, *blocks, k, k)``, positive scalings ``(*tasks, *blocks, k)``,
permutations index tensors ``(*tasks, *blocks, k)`` without an algebra. ``blocks`` counts independent copies of a group
that act side by side, such as the heads of an attention layer; it is empty for most layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from meta_teleport.linalg.exponential import matrix_exp, matrix_exp_pair


@dataclass(frozen=True)
class Group:
    """A group acting on ``k`` units, in every one of ``blocks``. Subclasses give the functions listed in the module's
    docstring."""

    k: int
    blocks: tuple[int, ...] = ()

    @property
    def algebra_shape(self) -> tuple[int, ...]:
        """Shape of the coordinates that ``exp`` takes, without the task dimensions."""
        return (*self.blocks, self.k, self.k)

    def identity(self, *tasks: int, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Tensor:
        """The neutral element, once per task: shape ``(*tasks, k, k)``."""
        return torch.eye(self.k, dtype=dtype, device=device).expand(*tasks, *self.blocks, self.k, self.k)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """``g h``: first h acts, then g."""
        return g @ h

    def inverse(self, g: Tensor) -> Tensor:
        """The element that undoes ``g``."""
        return torch.linalg.inv(g)

    def exp(self, algebra: Tensor) -> Tensor:
        """The element ``exp(T)`` for algebra coordinates T."""
        return matrix_exp(algebra)

    def exp_pair(self, algebra: Tensor) -> tuple[Tensor, Tensor]:
        """``exp(T)`` and its inverse ``exp(-T)``, which saves a solve when both are needed."""
        return self.exp(algebra), self.exp(-algebra)

    def sample(
        self,
        *tasks: int,
        generator: torch.Generator,
        size: float = 1.0,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """``exp(T)`` for T uniform on the sphere of Frobenius norm ``size``."""
        return self.exp(self.sample_algebra(*tasks, generator=generator, size=size, dtype=dtype, device=device))

    def sample_algebra(
        self,
        *tasks: int,
        generator: torch.Generator,
        size: float = 1.0,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """Algebra coordinates uniform on the sphere of Frobenius norm ``size``; drawn in float64 on the CPU."""
        shape = self.algebra_shape
        t = torch.randn(*tasks, *shape, generator=generator, dtype=torch.float64)
        t = size * t / t.flatten(len(tasks)).norm(dim=-1).reshape(*tasks, *(1 for _ in shape))
        return t.to(device, dtype or torch.get_default_dtype())

    def apply(self, g: Tensor, v: Tensor) -> Tensor:
        """``g V`` for V of shape ``(*tasks, k, d)``."""
        return g @ v

    def apply_right(self, u: Tensor, g: Tensor) -> Tensor:
        """``U g`` for U of shape ``(*tasks, m, k)``."""
        return u @ g

    def apply_inverse(self, u: Tensor, g: Tensor) -> Tensor:
        """``U g^-1`` for U of shape ``(*tasks, m, k)``."""
        return torch.linalg.solve(g, u, left=False)

    def dual(self, g: Tensor, inverse: Tensor | None = None) -> Tensor:
        """``g^-T``: gradients by what g moves are moved by the dual element. ``inverse`` is g^-1 where it is known."""
        return (self.inverse(g) if inverse is None else inverse).mT

    def transpose(self, g: Tensor) -> Tensor:
        """``g^T``, which undoes the dual element."""
        return g.mT

    def gram(self, v: Tensor) -> Tensor:
        """``V V^T`` of V ``(*tasks, k, d)``, in the shape of the algebra: its diagonal for positive scalings."""
        return v @ v.mT

    def squared(self, g: Tensor) -> Tensor:
        """The entries of g squared: what it does to the variances of independent numbers."""
        return g.square()


class GL(Group):
    """The general linear group of invertible k x k matrices."""

    def exp_pair(self, algebra: Tensor) -> tuple[Tensor, Tensor]:
        return matrix_exp_pair(algebra)


class FirstOrder(Group):
    """The group-like pair of earlier code: ``exp(T) = I + T`` and ``U (2 I - g)`` in place of ``U g^-1``.

    Not a group: the loss moves by O(|T|^2) (relative drift 6e-3 at norm 1). It is here to reproduce published
    results, and as the control that the invariance law must reject.
    """

    def exp(self, algebra: Tensor) -> Tensor:
        return algebra + torch.eye(self.k, dtype=algebra.dtype, device=algebra.device)

    def inverse(self, g: Tensor) -> Tensor:
        return 2 * torch.eye(self.k, dtype=g.dtype, device=g.device) - g

    def apply_inverse(self, u: Tensor, g: Tensor) -> Tensor:
        return u @ self.inverse(g)


class Orthogonal(Group):
    """The orthogonal group; its algebra coordinates are any k x k matrix, of which the skew part counts."""

    def dual(self, g: Tensor, inverse: Tensor | None = None) -> Tensor:
        return g

    def inverse(self, g: Tensor) -> Tensor:
        return g.mT

    def exp(self, algebra: Tensor) -> Tensor:
        return matrix_exp((algebra - algebra.mT) / 2)

    def exp_pair(self, algebra: Tensor) -> tuple[Tensor, Tensor]:
        g = self.exp(algebra)
        return g, g.mT

    def apply_inverse(self, u: Tensor, g: Tensor) -> Tensor:
        return u @ g.mT


class PositiveScaling(Group):
    """Diagonal matrices with positive entries, stored as their diagonals ``(*tasks, k)``."""

    @property
    def algebra_shape(self) -> tuple[int, ...]:
        return (*self.blocks, self.k)

    def identity(self, *tasks: int, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Tensor:
        return torch.ones(*tasks, *self.blocks, self.k, dtype=dtype, device=device)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return g * h

    def inverse(self, g: Tensor) -> Tensor:
        return 1 / g

    def dual(self, g: Tensor, inverse: Tensor | None = None) -> Tensor:
        return 1 / g if inverse is None else inverse

    def transpose(self, g: Tensor) -> Tensor:
        return g

    def exp(self, algebra: Tensor) -> Tensor:
        return algebra.exp()

    def gram(self, v: Tensor) -> Tensor:
        return v.square().sum(-1)

    def apply(self, g: Tensor, v: Tensor) -> Tensor:
        return g.unsqueeze(-1) * v

    def apply_right(self, u: Tensor, g: Tensor) -> Tensor:
        return u * g.unsqueeze(-2)

    def apply_inverse(self, u: Tensor, g: Tensor) -> Tensor:
        return u / g.unsqueeze(-2)


class Permutation(Group):
    """Permutations as index tensors ``(*tasks, k)``: ``(g V)[i] = V[g[i]]``. No exponential, no algebra."""

    @property
    def algebra_shape(self) -> tuple[int, ...]:
        raise TypeError("permutations have no Lie algebra: sample elements with Permutation.sample")

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

    def exp(self, algebra: Tensor) -> Tensor:
        raise TypeError("permutations have no exponential map: sample elements with Permutation.sample")

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


def tangent(group: Group, algebra: Tensor) -> Tensor:
    """The part of the algebra coordinates that moves anything: their skew part for rotations, all of them else."""
    return (algebra - algebra.mT) / 2 if isinstance(group, Orthogonal) else algebra
