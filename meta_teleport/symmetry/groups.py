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
from math import ceil, factorial, log2

import torch
from torch import Tensor

TAYLOR_DEGREES = (3, 5, 7, 9, 13, 17)
NORM_LIMIT = 1024.0


def matrix_exp_pair(a: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(a)`` and its inverse ``exp(-a)`` for a batch of matrices ``(*tasks, k, k)``.

    By scaling, Taylor polynomials of cosh and sinh, which share the powers of a^2, and squaring. Equal to
    ``torch.linalg.matrix_exp`` to rounding and several times faster, forward and backward, on batches of small
    matrices near zero: degree and scaling are chosen once for the whole batch, from its largest norm. A matrix of
    Frobenius norm above ``NORM_LIMIT`` gives nan and leaves the others alone.
    """
    norms = torch.linalg.vector_norm(a.detach(), dim=(-2, -1))
    size = float(norms.max()) if a.numel() else 0.0
    if not size <= NORM_LIMIT:
        near = norms <= NORM_LIMIT
        a, size = torch.where(near[..., None, None], a, torch.nan), float(torch.where(near, norms, 0).max())
    squarings = max(0, ceil(log2(size))) if size > 1 else 0
    a, size = a / 2**squarings, size / 2**squarings
    tolerance = torch.finfo(a.dtype).eps / 4 / 2**squarings
    degree = next((m for m in TAYLOR_DEGREES if size ** (m + 1) / factorial(m + 1) < tolerance), TAYLOR_DEGREES[-1])
    square = a @ a
    cosh = _even_series(square, degree - 1, 0)
    sinh = a @ _even_series(square, degree - 1, 1)
    plus, minus = cosh + sinh, cosh - sinh
    for _ in range(squarings):
        plus, minus = plus @ plus, minus @ minus
    return plus, minus


def _even_series(square: Tensor, degree: int, shift: int) -> Tensor:
    """``sum_i a^(2i) / (2i + shift)!`` up to ``degree`` in a, from ``square = a^2``, by Horner's rule."""
    eye = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    result = eye + square / ((degree + shift) * (degree + shift - 1))
    for i in range(degree - 2, 0, -2):
        result = eye + (square @ result) / ((i + shift) * (i + shift - 1))
    return result


def matrix_exp(a: Tensor) -> Tensor:
    """``exp(a)``, see :func:`matrix_exp_pair`."""
    return matrix_exp_pair(a)[0]


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

    def dual(self, g: Tensor) -> Tensor:
        """``g^-T``: gradients by what g moves are moved by the dual element."""
        return self.inverse(g).mT

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

    def dual(self, g: Tensor) -> Tensor:
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

    def dual(self, g: Tensor) -> Tensor:
        return 1 / g

    def exp(self, algebra: Tensor) -> Tensor:
        return algebra.exp()

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

    def dual(self, g: Tensor) -> Tensor:
        return g

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
