"""A parameter, or a part of it, seen as a matrix of units: ``(*tasks, *blocks, k, rest)``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from operator import mul
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """The parameter ``name``, its axes cut into factors ``shape``, some of which count the units a group acts on.

    ``ndim`` is the number of the parameter's own axes; leading task dimensions need no mention. ``units`` are the
    positions in ``shape`` of the factors that count units (one, or two for grouped convolutions), ``blocks`` those of
    factors that count independent copies of the group (heads). ``part``, where given, is the slice (axis, start,
    length) of the parameter that the view shows, with ``shape`` the factors of that slice. The group acts on the
    parameter plus ``shift``, as where a network computes with 1 + w. Examples:

        weight (k, d) that produces k units           View.along("w", (k, d), 0)
        weight (m, k) that consumes them              View.along("w", (m, k), 1)
        linear weight (m, c * p) behind a flatten     View("w", 2, (m, c, p), units=(1,))
        keys of 4 heads in a packed (3 e, e) weight   View("w", 2, (4, k, e), units=(1,), blocks=(0,), part=(0, e, e))
        scale 1 + w of a norm                         View("w", 1, (k,), units=(0,), shift=1.0)
    """

    name: str
    ndim: int
    shape: tuple[int, ...]
    units: tuple[int, ...]
    blocks: tuple[int, ...] = ()
    part: tuple[int, int, int] | None = None
    shift: float = 0.0

    @classmethod
    def along(cls, name: str, shape: Sequence[int], axis: int) -> Self:
        """The whole parameter of that ``shape``, with its units along one ``axis``."""
        return cls(name, len(shape), tuple(shape), (axis % len(shape),))

    @cached_property
    def size(self) -> int:
        """How many numbers of the parameter the view shows."""
        return prod(self.shape)

    @cached_property
    def front(self) -> tuple[int, ...]:
        """Blocks and units: ``(*blocks, k)``."""
        return (*(self.shape[i] for i in self.blocks), prod(self.shape[i] for i in self.units))

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether this is a view of parameters of that shape: every axis is a product of successive factors."""
        shown = list(shape)
        if self.part is not None:
            axis, start, length = self.part
            if len(shown) != self.ndim or shown[axis] < start + length:
                return False
            shown[axis] = length
        axes, factors = (list(accumulate(sizes, mul)) for sizes in (shown, self.shape))
        return len(shown) == self.ndim and set(axes) <= set(factors) and axes[-1:] == factors[-1:]

    @cached_property
    def linear(self) -> Self:
        """The view of gradients by the parameter, and of its differences, into which no shift enters."""
        return replace(self, shift=0.0) if self.shift else self

    def matrix(self, parameter: Tensor) -> Tensor:
        """The parameter plus the shift, as ``(*tasks, *blocks, k, rest)``."""
        numbers = self._arranged(parameter)
        return numbers + self.shift if self.shift else numbers

    def restore(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`matrix`: the parameter ``like`` with the numbers of the view replaced."""
        return self._replaced(matrix - self.shift if self.shift else matrix, like)

    def _arranged(self, parameter: Tensor) -> Tensor:
        if self._plain is not None:
            return (parameter.mT if self._plain else parameter) if self.ndim == 2 else parameter.unsqueeze(-1)
        tasks = parameter.ndim - self.ndim
        lead = parameter.shape[:tasks]
        factors = self._slice(parameter).reshape((*lead, *self.shape)).permute(self._order(tasks))
        return factors.reshape(*lead, *self._matrix_shape)

    def _replaced(self, matrix: Tensor, like: Tensor) -> Tensor:
        if self._plain is not None:
            return (matrix.mT if self._plain else matrix) if self.ndim == 2 else matrix.squeeze(-1)
        tasks = like.ndim - self.ndim
        order = self._order(tasks)
        moved = [*like.shape[:tasks], *(self.shape[i - tasks] for i in order[tasks:])]
        inverse = sorted(range(len(order)), key=order.__getitem__)
        numbers = matrix.reshape(moved).permute(inverse).reshape(self._slice(like).shape)
        if self.ndim > 2:  # strides decide the memory format of a convolution, which decides what dropout masks
            numbers = numbers.clone(memory_format=torch.contiguous_format)
        if self.part is None:
            return numbers
        axis, start, length = self.part
        axis += tasks
        after = like.narrow(axis, start + length, like.shape[axis] - start - length)
        return torch.cat([like.narrow(axis, 0, start), numbers, after], dim=axis)

    def _slice(self, parameter: Tensor) -> Tensor:
        if self.part is None:
            return parameter
        axis, start, length = self.part
        return parameter.narrow(axis + parameter.ndim - self.ndim, start, length)

    def _order(self, tasks: int) -> list[int]:
        """The axes of the factors in the order tasks, blocks, units, rest."""
        return [*range(tasks), *(tasks + i for i in self._factors)]

    @cached_property
    def _plain(self) -> int | None:
        """The axis of the units, where the view shows the whole of a vector or a matrix, uncut."""
        whole = self.part is None and not self.blocks and len(self.shape) == self.ndim <= 2 and len(self.units) == 1
        return self.units[0] if whole else None

    @cached_property
    def _factors(self) -> tuple[int, ...]:
        """The positions in ``shape`` in the order blocks, units, rest."""
        front = (*self.blocks, *self.units)
        return (*front, *(i for i in range(len(self.shape)) if i not in front))

    @cached_property
    def _matrix_shape(self) -> tuple[int, ...]:
        return (*self.front, self.size // prod(self.front))
