"""A parameter seen as a matrix of units: ``(*tasks, k, rest)``."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class View:
    """The parameter ``name`` with the axis of its units in front and everything else flattened behind.

    ``axis`` counts from the end (-1 is the last), so leading task dimensions need no mention; ``ndim`` is the number
    of the parameter's own dimensions. A weight ``(k, d)`` that produces k units is ``View(name, -2, 2)``, a weight
    ``(m, k)`` that consumes them ``View(name, -1, 2)``, a bias ``(k,)`` is ``View(name, -1, 1)``.
    """

    name: str
    axis: int
    ndim: int

    def units(self, parameter: Tensor) -> Tensor:
        """The parameter as ``(*tasks, k, rest)``."""
        if self.ndim == 1:
            return parameter.unsqueeze(-1)
        return parameter.movedim(self.axis, -self.ndim).flatten(1 - self.ndim)

    def restore(self, units: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`units`, in the shape of ``like``."""
        if self.ndim == 1:
            return units.squeeze(-1)
        moved = like.movedim(self.axis, -self.ndim).shape
        return units.reshape(moved).movedim(-self.ndim, self.axis)
