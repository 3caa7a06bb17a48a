"""Turning units to where their gradients are uncorrelated: what makes plain Adam act like Shampoo or SOAP.

Adam treats every entry of a weight by itself, so what it does depends on the basis that the units are written in; the
loss does not where an orthogonal matrix may turn them (the residual stream of a pre-norm transformer, the values of an
attention head). With G_j the gradients of all parameters that produce or read the units, units in front,

    C = mean over steps of sum_j G_j G_j^T / tr(G_j G_j^T)

is the second moment of the gradients over the units, and under g it becomes g C g^T. The teleport turns to its axes, g
with g C g^T diagonal, largest first. Full-matrix methods keep one basis per weight and turn every gradient into it and
every step back (Gupta et al. 2018, Vyas et al. 2024); here one exact symmetry turns the network itself.

The first teleport takes the eigenvectors of C. As C is nearly diagonal then, each later one is a step of orthogonal
iteration: C = Q R with a positive diagonal of R, and g = Q^T, which is near the identity.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.linalg.decompositions import eigh
from meta_teleport.params import Params, value_and_grad
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.ascent import identities
from meta_teleport.teleportation.conditions import trainable_sites
from meta_teleport.teleportation.objectives import Loss
from meta_teleport.teleportation.proposer import Found, Proposer


@dataclass(frozen=True)
class GradientAxes:
    """Turns every site whose group has all rotations to the axes of its gradients; other sites stay.

    ``decay``, per step, is that of the running mean C. Gradients are looked at before every ``every``-th step of the
    base optimizer; those that are zero or not finite do not count. Cost of a look: one product per parameter, 2 k n
    operations for n entries and k units. Where no gradient was seen before a teleport, the loss is differentiated.

    Raises ``UserError`` for settings that make no mean.
    """

    decay: float = 0.95
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"decay={self.decay!r}: give a number from 0 to 1, 1 excluded")
        if not isinstance(self.every, int) or self.every < 1:
            raise UserError(f"every={self.every!r}: give a whole number, at least 1")

    def proposer(self, model: nn.Module, symmetry: Symmetry) -> "AxesProposer":
        """A new one. Raises ``UserError`` if no site can turn."""
        return AxesProposer(self, model, symmetry)


class AxesProposer(Proposer):
    """The axes of the sites of ``symmetry`` in ``model``, and every site's running mean, ``(1, *blocks, k, k)``."""

    reads_loss = False
    piles_up = False

    def __init__(self, settings: GradientAxes, model: nn.Module, symmetry: Symmetry) -> None:
        self.settings, self.model = settings, model
        self.sites = tuple(site for site in trainable_sites(model, symmetry).sites if site.group.has_rotations)
        if not self.sites:
            raise UserError("no site of the symmetry can be turned: 'gradient_axes' needs sites of GL or Orthogonal")
        self._looks = 0
        self._second: dict[str, Tensor] = {}
        self._turned: set[str] = set()
        self._elements: dict[str, Tensor] = {}

    def watch(self) -> None:
        if self._looks % self.settings.every == 0:
            named = self.model.named_parameters()
            self._observe({name: p.grad.detach().unsqueeze(0) for name, p in named if p.grad is not None})
        self._looks += 1

    def propose(self, symmetry: Symmetry, params: Params, loss: Loss) -> Found:
        if not self._second:
            self._observe(value_and_grad(loss, params)[1])
        sites, still = symmetry.sites, identities(symmetry, params)
        known = zip(sites, still, strict=True)  # a site whose gradients are still to come stays
        self._elements = {s.name: self._axes(s.name).to(e) for s, e in known if s.name in self._second}
        elements = [self._elements.get(site.name, e) for site, e in zip(sites, still, strict=True)]
        inverses = [site.group.transpose(g) for site, g in zip(sites, elements, strict=True)]
        return Found(symmetry.act(params, elements, inverses=inverses), elements)

    def accept(self) -> None:
        for name, g in self._elements.items():
            self._second[name] = g @ self._second[name] @ g.mT
        self._turned |= self._elements.keys()

    def state_dict(self) -> dict[str, Any]:
        return {"second": dict(self._second), "looks": self._looks, "turned": sorted(self._turned)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        like = next(self.model.parameters())
        self._second = {name: second.to(like) for name, second in state["second"].items()}
        self._looks, self._turned = state["looks"], set(state["turned"])

    def _axes(self, site: str) -> Tensor:
        """The element of one site, ``(1, *blocks, k, k)``, in float64."""
        second = self._second[site].double()
        if site not in self._turned:
            return eigh(second)[1].flip(-1).mT
        q, r = torch.linalg.qr(second)
        return (q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)).mT

    def _observe(self, gradients: Params) -> None:
        kept = self.settings.decay**self.settings.every
        for site in self.sites:
            views = [view for view in (*site.producers, *site.consumers) if view.name in gradients]
            if not views:
                continue
            seen = torch.stack([_correlation(view.linear.matrix(gradients[view.name])) for view in views]).sum(0)
            mean = self._second.get(site.name)
            self._second[site.name] = seen if mean is None else mean.lerp(seen, 1 - kept)


def _correlation(gradients: Tensor) -> Tensor:
    """``G G^T / tr(G G^T)`` of G ``(1, *blocks, k, rest)``; zeros where G is zero or not finite."""
    gram = gradients @ gradients.mT
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    return torch.where(trace.isfinite() & (trace > 0), gram / trace, 0.0)
