"""Rotations behind an invertible map h of the plane, or of another space: ``x -> h^-1(R h(x))``.

They leave every function of ``|h(x)|`` unchanged (Zhao et al. 2022, section 4.1).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from meta_teleport.params import Params
from meta_teleport.symmetry.site import LayerInput, Site
from meta_teleport.symmetry.symmetry import Symmetry


@dataclass(frozen=True)
class ConjugateSite(Site):
    """The site ``x -> h^-1(R h(x))`` on the parameter ``x`` of shape ``(tasks, n)``."""

    h: Callable[[Tensor], Tensor]
    h_inverse: Callable[[Tensor], Tensor]

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("x",)

    def act(self, params: Params, g: Tensor, inputs: LayerInput | None = None, inverse: Tensor | None = None) -> Params:
        u = self.group.apply(g, self.h(params["x"]).unsqueeze(-1)).squeeze(-1)
        return {**params, "x": self.h_inverse(u)}

    def transport(self, gradients: Params, g: Tensor, inverse: Tensor | None = None) -> Params:
        """Leaves gradients alone: how they move depends on the point, as the action is not linear."""
        return gradients

    def transport_squares(self, squares: Params, g: Tensor, inverse: Tensor | None = None) -> Params:
        return squares


@dataclass(frozen=True)
class PlaneSymmetry(Symmetry):
    """The one site of a two-dimensional test function; what the group acts on is ``h(x)`` as a column."""

    sites: tuple[ConjugateSite, ...]

    def hidden(self, params: Params, inputs: Tensor | LayerInput) -> tuple[Tensor, ...]:
        return tuple(site.h(params["x"]).unsqueeze(-1) for site in self.sites)
