"""Views of parameters whose units lie on no grid: interleaved heads, shuffled channels."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meta_teleport.symmetry.views import View


@dataclass(frozen=True, eq=False)
class Gathered(View):
    """The parameter ``name`` with the place of every number of the matrix spelled out.

    ``places`` ``(*blocks, k, rest)`` are positions in the flattened parameter, each at most once. ``shape`` is the
    parameter's own, ``units`` and ``blocks`` are those of the matrix's axes.
    """

    places: Tensor = field(kw_only=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Gathered) or (self.name, self.shift) != (other.name, other.shift):
            return False
        return torch.equal(self.places, other.places)

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.places.shape)))

    @property
    def size(self) -> int:
        return self.places.numel()

    @property
    def front(self) -> tuple[int, ...]:
        return tuple(self.places.shape[:-1])

    def fits(self, shape: Sequence[int]) -> bool:
        return tuple(shape) == self.shape

    def _arranged(self, parameter: Tensor) -> Tensor:
        return parameter.flatten(parameter.ndim - self.ndim)[..., self.places.to(parameter.device)]

    def _replaced(self, matrix: Tensor, like: Tensor) -> Tensor:
        tasks = like.ndim - self.ndim
        numbers = matrix.reshape(*like.shape[:tasks], self.size)
        places = self.places.to(like.device).reshape(-1)
        return like.flatten(tasks).index_copy(tasks, places, numbers).reshape(like.shape)
