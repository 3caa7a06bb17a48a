"""What surrounds a site: the weights that produce its units, those that consume them, and their gradients.

Everything is seen from the units: V and its gradient ``(tasks, *blocks, k, rest)``, U transposed alike. The actions
that depend on data name their layers in other words than exact sites do; here the two look the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from meta_teleport.params import Params
from meta_teleport.symmetry.general_linear import GeneralLinearSite
from meta_teleport.symmetry.pseudo_inverse import PseudoInverseSite
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.views import View


def produced(site: Site, params: Params) -> Tensor:
    """V: all that produces the units, biases as columns, ``(tasks, *blocks, k, rest)``."""
    if isinstance(site, GeneralLinearSite):
        return site.producer.augmented(params)
    return _stack(site, site.producers, params)


def consumed(site: Site, params: Params) -> Tensor:
    """U^T: all that consumes the units, ``(tasks, *blocks, k, rest)``."""
    if isinstance(site, PseudoInverseSite):
        return params[site.consumer.weight].mT
    return _stack(site, site.consumers, params)


def consumer_names(site: Site) -> set[str]:
    """The parameters that consume the units."""
    if isinstance(site, PseudoInverseSite):
        return {site.consumer.weight}
    return {view.name for view in site.consumers}


def _stack(site: Site, views: Sequence[View], params: Params) -> Tensor:
    """The matrices side by side; a column of zeros where a site has none on that side."""
    matrices = [view.matrix(params[view.name]) for view in views]
    if not matrices:
        like = next(iter(params.values()))
        return like.new_zeros(len(like), *site.group.blocks, site.group.k, 1)
    return torch.cat(matrices, dim=-1) if len(matrices) > 1 else matrices[0]
