"""What a size-free rule knows of every parameter p with gradient g_p, beside :mod:`task_features`.

Six numbers, the same for every shape:

    log(|g_p| / |G|) / 3,  cos(g_p, m_p),  log(rms(p) sqrt(fan-in)),  log(k |C|_F^2 / tr(C)^2) / 3,
    is p produced / consumed by a site (1 or 0),

with m_p a running mean of the gradient and C the second moments of the activations that p consumes, which say how far
from white these are.
"""

import torch
from torch import Tensor

from meta_teleport.learned.task_features import log_ratio
from meta_teleport.params import Params, norms, rows
from meta_teleport.rules.rule import Observation
from meta_teleport.rules.step_lengths import fan_in
from meta_teleport.symmetry.groups import PositiveScaling
from meta_teleport.symmetry.symmetry import Symmetry

LAYER_FEATURES = 6
PRODUCED = 4  # the place of the first role


def read_layers(observation: Observation, sizes: Tensor, mean: Params | None) -> Tensor:
    """The features ``(tasks, parameters, LAYER_FEATURES)``; ``sizes`` are the norms of the gradients ``(tasks,
    parameters)``. Cosines are 0 without a ``mean``, spreads where activations are zero or not known."""
    total = sizes.norm(dim=1, keepdim=True)
    alignment = torch.zeros_like(sizes)
    if mean is not None:
        products = _products(observation.gradients, mean)
        alignment = products / (sizes * norms(mean)).clamp(min=torch.finfo(sizes.dtype).tiny)
    roles = sizes.new_tensor(_roles(observation.params, observation.symmetry)).expand(*sizes.shape, 2)
    own = [log_ratio(sizes, total) / 3, alignment, _sizes(observation.params), _spreads(observation)]
    return torch.cat([torch.stack(own, -1), roles], -1)


def _sizes(params: Params) -> Tensor:
    """``log(rms(p) sqrt(fan_in(p)))`` in [-5, 5], ``(tasks, parameters)``."""
    units = [(p[0].numel() / fan_in(p)) ** 0.5 for p in params.values()]
    sizes = norms(params)
    return log_ratio(sizes, sizes.new_tensor(units)).clamp(-5, 5)


def _products(a: Params, b: Params) -> Tensor:
    """The inner products, parameter by parameter, ``(tasks, parameters)``."""
    products = [rows(a[name]).unsqueeze(1) @ rows(b[name]).unsqueeze(2) for name in a]
    return torch.cat(products, 1).squeeze(2)


def _spreads(observation: Observation) -> Tensor:
    """``log(k |C|_F^2 / tr(C)^2) / 3``, ``(tasks, parameters)``."""
    blank = torch.zeros_like(observation.loss)
    found: dict[str, Tensor] = {}
    for site, gram in zip(observation.symmetry.sites, observation.grams, strict=False):
        if gram is None:
            continue
        diagonal = gram if isinstance(site.group, PositiveScaling) else gram.diagonal(dim1=-2, dim2=-1)
        trace = diagonal.flatten(1).sum(1)
        alive = trace > 0
        parts = gram.flatten(1) / torch.where(alive, trace, 1.0).unsqueeze(1)
        square = torch.where(alive, site.group.k * parts.square().sum(1), 1.0)
        found |= dict.fromkeys(site.consumer_names, square.log() / 3)
    return torch.stack([found.get(name, blank) for name in observation.params], 1)


def _roles(params: Params, symmetry: Symmetry) -> list[list[float]]:
    """Per parameter: does a site produce with it, does one consume it?"""
    made, read = set(), set()
    for site in symmetry.sites:
        read |= {*site.consumer_names}
        made |= {*site.parameters} - {*site.consumer_names}
    return [[float(name in made), float(name in read)] for name in params]
