"""Imbalance: how unevenly a site's norm is spread between what produces its units and what consumes them.

Along an orbit ``||g V||^2 + ||U g^-1||^2`` has a least value, twice the sum of the singular values of U V (for positive
scalings of the products ``|v_i| |u_i|``), which the balanced gauge reaches. The imbalance is the squared norm in
multiples of that least one: 1 at the balanced gauge, the same under rotations, and without bound along the orbit.

A search that begins where the last one ended piles its factors up, until the weights are so uneven that every optimizer
fails, while each single teleport leaves the loss alone. So the place that is reached is held against the one where
training began, not the step against the last.
"""

from collections.abc import Mapping
from math import inf, isfinite
from types import MappingProxyType

from torch import Tensor, nn

from meta_teleport.params import Params
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.gauges import principal_stretch, stacked


def imbalance(site: Site, params: Params) -> Tensor:
    """``(||V||^2 + ||U||^2) / (2 ||U V||_*)``, shape ``(tasks,)``, all blocks and units of the site together.

    inf where U V is zero. Sites with producers or consumers alone have no least norm: inf too.
    """
    if not (site.producers and site.consumers):
        like = params[site.parameters[0]]
        return like.new_full((len(like),), inf)
    v, u = stacked(site.producers, params), stacked(site.consumers, params)
    total = v.square().flatten(1).sum(1) + u.square().flatten(1).sum(1)
    return total / (2 * principal_stretch(site, params).flatten(1).sum(1))


class Balance:
    """The imbalance of every site of a model where training began, which later teleports are held against."""

    def __init__(self, model: nn.Module, symmetry: Symmetry, limit: float) -> None:
        self.model, self.symmetry, self.limit = model, symmetry, limit
        self.start = {} if limit == inf else self._imbalances()

    def fault(self, moved: Mapping[str, Tensor]) -> str:
        """Why a teleport of the model to the parameters ``moved`` leads too far, in one line; empty if it does not.

        It may lower an imbalance, or leave it below ``limit`` times that at the start. A site whose U V was zero at the
        start (a LoRA pair) starts where it is first seen otherwise.
        """
        if self.limit == inf:
            return ""
        here, there = self._imbalances(), self._imbalances(moved)
        for name, value in there.items():
            if not isfinite(self.start[name]):
                self.start[name] = here[name]
            if not value <= max(self.limit * self.start[name], here[name]):
                return (
                    f"site '{name}' would have {value:.3g} times the least squared norm of its orbit, and the limit is "
                    f"{self.limit:g} times {self.start[name]:.3g}, where training began"
                )
        return ""

    def state_dict(self) -> dict[str, float]:
        """The imbalances at the start, by site."""
        return dict(self.start)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self.start = {**self.start, **state}

    def _imbalances(self, moved: Mapping[str, Tensor] = MappingProxyType({})) -> dict[str, float]:
        params = {name: moved.get(name, p.detach()).unsqueeze(0) for name, p in self.model.named_parameters()}
        return {site.name: float(imbalance(site, params)) for site in self.symmetry.sites}
