"""The contract of a group that acts on the units of a layer.

    group, generator = GL(8), torch.Generator().manual_seed(0)
    g = group.sample(3, generator=generator)            one element for each of three tasks, (3, 8, 8)
    u, v = group.apply_inverse(u, g), group.apply(g, v)            leaves u @ v where it was

A group is its size ``k`` and a handful of pure functions; its elements are plain tensors with leading task
dimensions, so a batch of elements is one tensor. ``blocks`` counts independent copies of a group that act side by
side, such as the heads of an attention layer; it is empty for most layers. Elements are

    matrices        (*tasks, *blocks, k, k)      GL, Orthogonal
    diagonals       (*tasks, *blocks, k)         PositiveScaling, SignFlips
    index tensors   (*tasks, *blocks, k)         Permutation, which has no algebra

A new group is a subclass, of :class:`matrix_groups.MatrixGroup`, :class:`diagonal_groups.DiagonalGroup` or
:class:`DiscreteGroup` where one of these fits, and an entry in the table of ``groups``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from meta_teleport.activations import Activation


@dataclass(frozen=True)
class Group(ABC):
    """A group acting on ``k`` units, in every one of ``blocks``.

    What is known of all its elements:

        is_exact        they are a group, so that the loss stays where it is
        is_diagonal     they act unit by unit, and are stored as diagonals
        is_isometric    they keep the norm of what they act on
        has_algebra     they are exp(T) for coordinates T, which a search can follow
        has_gauges      every positive definite matrix (or diagonal) is one, and with it those that balance or whiten
        has_rotations   every orthogonal matrix is one
    """

    k: int
    blocks: tuple[int, ...] = ()

    is_exact: ClassVar[bool] = True
    is_diagonal: ClassVar[bool] = False
    is_isometric: ClassVar[bool] = False
    has_algebra: ClassVar[bool] = True
    has_gauges: ClassVar[bool] = False
    has_rotations: ClassVar[bool] = False
    needs: ClassVar[str] = "the identity as activation"
    """What :meth:`passes` asks for, in words."""

    @classmethod
    def passes(cls, sigma: Activation) -> bool:
        """Whether ``sigma(g z) = g sigma(z)`` for every element g, so that it may act around sigma."""
        return sigma.name == "identity"

    @property
    @abstractmethod
    def algebra_shape(self) -> tuple[int, ...]:
        """Shape of the coordinates that ``exp`` takes, without the task dimensions."""

    @abstractmethod
    def identity(self, *tasks: int, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Tensor:
        """The neutral element, once per task: ``(*tasks, *blocks, k, k)``, or ``(*tasks, *blocks, k)``."""

    @abstractmethod
    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """``g h``: first h acts, then g."""

    @abstractmethod
    def inverse(self, g: Tensor) -> Tensor:
        """The element that undoes ``g``."""

    @abstractmethod
    def exp(self, algebra: Tensor) -> Tensor:
        """The element ``exp(T)`` for algebra coordinates T."""

    def exp_pair(self, algebra: Tensor) -> tuple[Tensor, Tensor]:
        """``exp(T)`` and its inverse ``exp(-T)``, which saves a solve when both are needed."""
        return self.exp(algebra), self.exp(-algebra)

    def tangent(self, algebra: Tensor) -> Tensor:
        """The part of the algebra coordinates that moves anything."""
        return algebra

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

    @abstractmethod
    def apply(self, g: Tensor, v: Tensor) -> Tensor:
        """``g V`` on what produces the units, V of shape ``(*tasks, *blocks, k, d)``."""

    @abstractmethod
    def apply_right(self, u: Tensor, g: Tensor) -> Tensor:
        """``U g`` for U of shape ``(*tasks, *blocks, m, k)``."""

    @abstractmethod
    def apply_inverse(self, u: Tensor, g: Tensor) -> Tensor:
        """``U g^-1`` on what consumes the units, U of shape ``(*tasks, *blocks, m, k)``."""

    def dual(self, g: Tensor, inverse: Tensor | None = None) -> Tensor:
        """``g^-T``: gradients by what g moves are moved by the dual element. ``inverse`` is g^-1 where it is known."""
        return self.transpose(self.inverse(g) if inverse is None else inverse)

    @abstractmethod
    def transpose(self, g: Tensor) -> Tensor:
        """``g^T``, which undoes the dual element."""

    def squared(self, g: Tensor) -> Tensor:
        """The entries of g squared: what it does to the variances of independent numbers."""
        return g.square()

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """``A B^T`` of matrices ``(*tasks, *blocks, k, rest)``; for diagonal groups its diagonal."""
        return a @ b.mT

    def gram(self, v: Tensor) -> Tensor:
        """``V V^T`` of V ``(*tasks, *blocks, k, rest)``; for diagonal groups its diagonal."""
        return self.product(v, v)

    def condition(self, g: Tensor, inverse: Tensor | None = None) -> Tensor:
        """By how much acting with g can multiply relative rounding errors of the weights, ``(*tasks, *blocks)``; inf
        where g is singular. ``inverse`` is g^-1 where it is known."""
        return torch.ones(g.shape[: g.ndim - 1], dtype=torch.float64, device=g.device)


class DiscreteGroup(Group):
    """A group without a Lie algebra, such as permutations: it has ``sample`` and no ``exp``."""

    has_algebra = False

    @property
    def algebra_shape(self) -> tuple[int, ...]:
        raise TypeError(f"{self._name} has no Lie algebra: sample elements with {self._name}.sample")

    def exp(self, algebra: Tensor) -> Tensor:
        raise TypeError(f"{self._name} has no exponential map: sample elements with {self._name}.sample")

    @property
    def _name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def sample(
        self,
        *tasks: int,
        generator: torch.Generator,
        size: float = 1.0,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """Random elements, uniform; ``size`` has no meaning here."""
