"""Site features: the weights that produce the units of a site, those that consume them, and their gradients.

Everything is seen from the units: V and its gradient ``(tasks, *blocks, k, rest)``, U transposed alike. The actions
that depend on data name their layers in other words than exact sites do; here the two look the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from meta_teleport.params import Params, per_task
from meta_teleport.rules.rule import Observation
from meta_teleport.symmetry.site import Site


class SiteFeatures(NamedTuple):
    """What a rule measures of V, U^T, dL/dV and dL/dU^T, these four in front of ``grams`` (4, tasks, rows, k, k), or
    their diagonals (4, tasks, rows, k), and of the norms ``sizes`` (4, tasks, rows); ``product`` U^T dL/dU has the
    shape of a gram. Gradients count in units of their norm over the task: squares of small ones would vanish."""

    grams: Sequence[Tensor]
    sizes: Tensor
    product: Tensor


def site_features(site: Site, observation: Observation) -> SiteFeatures:
    """The features of a site of matrices."""
    (v, u), (dv, du) = (
        (_rows(site, seen.produced(of)), _rows(site, seen.consumed(of)))
        for seen, of in ((site, observation.params), (site.linear, observation.gradients))
    )
    unit = _unit(*(d.detach().flatten(1).norm(dim=1) for d in (dv, du)))
    dv, du = (d / per_task(unit, d) for d in (dv, du))
    matrices = (v, u, dv, du)
    sizes = torch.stack([m.flatten(2).norm(dim=-1) for m in matrices])
    return SiteFeatures([m @ m.mT for m in matrices], sizes, u @ du.mT)


def diagonal_site_features(site: Site, observation: Observation) -> SiteFeatures:
    """The features of a site of scalings; nothing of the size of a parameter is kept. Gradients whose squares vanish in
    their precision count as zero."""
    w, g = observation.params, observation.gradients
    sloped = site.linear
    squares = torch.stack([_row_squares(site, w), _products(site, w, site, w)])
    slopes = torch.stack([_row_squares(sloped, g), _products(sloped, g, sloped, g)])
    unit = per_task(_unit(*slopes.detach().flatten(2).sum(2).sqrt()), slopes[0])
    squares = torch.cat([squares, slopes / unit / unit])  # the square of the unit may vanish
    return SiteFeatures(squares.unbind(), _root(squares.sum(-1)), _products(site, w, sloped, g) / unit)


def _row_squares(site: Site, params: Params) -> Tensor:
    """The diagonal of V V^T, ``(tasks, rows, k)``."""
    norms = [view.matrix(params[view.name]).norm(dim=-1) for view in site.producers]
    return _per_row(site, [n * n for n in norms], params)


def _products(site: Site, a: Params, other: Site, b: Params) -> Tensor:
    """The diagonal of U_a^T U_b, ``(tasks, rows, k)``, U_b as the ``other`` site sees it; norms along columns would be
    several times slower."""
    views = zip(site.consumers, other.consumers, strict=True)
    pairs = [(view.matrix(a[view.name]), second.matrix(b[view.name])) for view, second in views]
    return _per_row(site, [(u * x).sum(-1) for u, x in pairs], a)


def _per_row(site: Site, terms: list[Tensor], params: Params) -> Tensor:
    """The sum of terms ``(tasks, *blocks, k)``, zero if there are none, as ``(tasks, rows, k)``."""
    like = next(iter(params.values()))
    total = sum(terms[1:], terms[0]) if terms else like.new_zeros(len(like), *site.group.blocks, site.group.k)
    return total.reshape(len(total), -1, site.group.k)


def _rows(site: Site, matrix: Tensor) -> Tensor:
    """``(tasks, *blocks, k, rest)`` with a row per block, ``(tasks, rows, k, rest)``."""
    return matrix.reshape(len(matrix), -1, site.group.k, matrix.shape[-1])


def _unit(a: Tensor, b: Tensor) -> Tensor:
    """The larger of two norms ``(tasks,)``, not zero."""
    return torch.maximum(a, b).clamp(min=torch.finfo(a.dtype).tiny)


def _root(x: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)
