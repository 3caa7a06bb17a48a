"""The moment map: how fast a function changes along the orbit, from how fast it changes with the parameters.

For a site with producers V and consumers U, moved by g = exp(T),

    d f(g . w) / dT at T = 0  =  sum over V of (df/dV) V^T  -  sum over U of U^T (df/dU),

its diagonal for positive scalings, its skew part for rotations. The sites of a model add up, each at the present point.
"""

import torch
from torch import Tensor

from meta_teleport.params import Params
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View


def has_moment_map(site: Site) -> bool:
    """Does the site act by the one formula ``g V, U g^-1``, to first order at least?"""
    return type(site).act is Site.act


def transports_gradients(site: Site) -> bool:
    """Do the gradients at ``g.w`` follow from those at w alone, by :meth:`Site.transport`?"""
    return has_moment_map(site) and site.group.is_exact


def moment_map(symmetry: Symmetry, params: Params, gradients: Params) -> list[Tensor]:
    """The gradient of ``f(exp(T) . w)`` with respect to T at T = 0, from the ``gradients`` of f at w.

    One tensor ``(*tasks, *algebra_shape)`` per site, all of which must have a moment map; ``params`` and ``gradients``
    hold what the sites move.
    """

    def pair(view: View) -> tuple[Tensor, Tensor]:
        return view.linear.matrix(gradients[view.name]), view.matrix(params[view.name])

    def moment(site: Site) -> Tensor:
        group = site.group
        produced = [group.tangent(group.product(gradient, v)) for gradient, v in map(pair, site.producers)]
        consumed = [-group.tangent(group.product(u, gradient)) for gradient, u in map(pair, site.consumers)]
        return torch.stack(produced + consumed).sum(0)

    return [moment(site) for site in symmetry.sites]
