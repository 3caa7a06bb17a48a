"""Gauges: representatives of an orbit chosen by a formula, not by a search.

An exact site fixes a product of what consumes its units, U (m x k), with what produces them, V (k x d): every U g^-1
and g V give the same U V. Biases are columns of V; several producers or consumers are stacked. Per site:

    balanced              minimises ||g V||^2 + ||U g^-1||^2, so that (g V)(g V)^T = (U g^-1)^T (U g^-1)
    principal_axes        U g^-1 = u c S^(1 - e) and g V = S^e v^T / c, from the singular values U V = u S v^T
    whitened_producers    (g V)(g V)^T = I
    whitened_consumers    (U g^-1)^T (U g^-1) = I

Positive scalings have the same with the diagonals of these matrices (for the principal axes: |v_i| = n_i^e / c and
|u_i| = c n_i^(1 - e), n_i the product of the norms of unit i on the two sides); a unit that has no weights on one
side, and so does nothing, stays as it is.

All take parameters ``(*tasks, *shape)`` and give elements ``(*tasks, *blocks, k, k)`` or ``(*tasks, *blocks, k)`` in
the parameters' precision, computed in float64, not differentiable. Where the product has no full rank (a LoRA pair
whose B is still zero) no element has the property: that of such a task and block is nan throughout. ``UserError`` is
raised for a group that has no such elements, and for a site without producers or consumers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from meta_teleport.errors import UserError
from meta_teleport.linalg.decompositions import eigh, svd, svdvals
from meta_teleport.params import Params
from meta_teleport.symmetry.group import Group
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.views import View

FLOOR = 1e-14


@dataclass(frozen=True)
class Gauge:
    """A gauge with its settings, as ``teleport`` takes it: ``element(site, params)`` as in this module.

    For instance ``Gauge("uneven axes", partial(principal_axes, exponent=0.75, scale=2.0))``.
    """

    name: str
    element: Callable[[Site, Params], Tensor]


def balanced(site: Site, params: Params) -> Tensor:
    """The symmetric positive g that minimises the weights' norm, ``||g V||^2 + ||U g^-1||^2``.

    For GL, ``g^2 = P^(-1/2) (P^(1/2) C P^(1/2))^(1/2) P^(-1/2)``, the geometric mean of P^-1 and C, with P = V V^T and
    C = U^T U; for positive scaling ``s = (C / P)^(1/4)``, P and C the squared norms of each unit on the two sides.
    """
    axes = principal_axes(site, params)
    if site.group.is_diagonal:
        return axes
    _, stretch, y = svd(axes.double())
    return ((y.mT * stretch.unsqueeze(-2)) @ y).to(axes.dtype)


def principal_axes(site: Site, params: Params, exponent: float = 0.5, scale: float = 1.0) -> Tensor:
    """The g with ``U g^-1 = u c S^(1 - e)`` and ``g V = S^e v^T / c``, where U V = u S v^T.

    e is the ``exponent`` and c the ``scale``: 1/2 and 1 share the singular values evenly. They are in falling order,
    and the signs of u and v such that the diagonal of g is not negative. Costs two QR decompositions and the SVD of a
    k x k matrix.
    """
    v, u = _producers(site, params), _consumers(site, params)
    _require_gauges(site)
    dtype = params[site.producers[0].name].dtype
    if site.group.is_diagonal:
        p, c = v.square().sum(-1), u.square().sum(-1)
        alive = (p > 0) & (c > 0)
        p, c = torch.where(alive, p, 1.0), torch.where(alive, c, 1.0)
        return torch.where(alive, (p * c) ** (exponent / 2) / (scale * p.sqrt()), 1.0).to(dtype)
    triangle = _triangle(u)
    a, values, _ = svd(triangle @ _triangle(v).mT)
    values = _full_rank(values)
    g = (values ** (exponent - 1) / scale).unsqueeze(-1) * (a.mT @ triangle)
    negative = g.diagonal(dim1=-2, dim2=-1) < 0
    return torch.where(negative.unsqueeze(-1), -g, g).to(dtype)


def principal_stretch(site: Site, params: Params) -> Tensor:
    """The singular values S of U V, ``(*tasks, *blocks, k)`` in float64; for positive scaling ``|v_i| |u_i|``."""
    v, u = _producers(site, params), _consumers(site, params)
    if site.group.is_diagonal:
        return v.norm(dim=-1) * u.norm(dim=-1)
    return svdvals(_triangle(u) @ _triangle(v).mT)


def whitened_producers(site: Site, params: Params) -> Tensor:
    """``g = (V V^T)^(-1/2)``; for positive scaling ``s_i = 1 / |v_i|``."""
    return _whitened(site, _producers(site, params), -1.0).to(params[site.producers[0].name].dtype)


def whitened_consumers(site: Site, params: Params) -> Tensor:
    """``g = (U^T U)^(1/2)``; for positive scaling ``s_i = |u_i|``."""
    return _whitened(site, _consumers(site, params), 1.0).to(params[site.producers[0].name].dtype)


GAUGES = {
    gauge.name: gauge
    for gauge in (
        Gauge("balanced", balanced),
        Gauge("whitened", whitened_producers),
        Gauge("principal_axes", principal_axes),
    )
}


def whitened_activations(group: Group, hidden: Tensor) -> Tensor:
    """Algebra coordinates of the element that whitens the activations of one site.

    For GL, ``T = -1/2 log(h h^T)``, so that g = exp(T) gives ``(g h)(g h)^T = I`` on the span of h; for positive
    scaling the same with the diagonal of ``h h^T`` (every unit gets norm 1). ``hidden`` is h as columns
    ``(*tasks, k, n)``. Eigenvalues below 1e-14 of the largest are raised to that floor; computed in float64. Where h is
    zero, or not finite, T is 0. Not differentiable.

    Raises ``TypeError`` for groups in which no element whitens.
    """
    h = hidden.detach().double()
    if not group.has_gauges:
        raise TypeError(f"no element of {type(group).__name__} whitens activations")
    if group.is_diagonal:
        squares = h.square().sum(-1)
        largest = squares.amax(-1, keepdim=True)
        raised = torch.maximum(squares, FLOOR * largest)
        return (-0.5 * torch.where(largest > 0, raised, 1.0).log()).to(hidden.dtype)
    values, vectors = eigh(h @ h.mT)
    values = torch.maximum(values, FLOOR * values[..., -1:])
    values = torch.where(values > 0, values, 1.0)
    return ((vectors * (-0.5 * values.log()).unsqueeze(-2)) @ vectors.mT).to(hidden.dtype)


def _whitened(site: Site, matrix: Tensor, power: float) -> Tensor:
    """``(M M^T)^(power / 2)`` for M ``(*tasks, *blocks, k, rest)``."""
    _require_gauges(site)
    if site.group.is_diagonal:
        norms = matrix.square().sum(-1).sqrt()
        return torch.where(norms > 0, norms, 1.0) ** power
    a, values, _ = svd(_triangle(matrix).mT)
    return (a * (_full_rank(values) ** power).unsqueeze(-2)) @ a.mT


def _producers(site: Site, params: Params) -> Tensor:
    return _stack(site, "producers", site.producers, params)


def _consumers(site: Site, params: Params) -> Tensor:
    return _stack(site, "consumers", site.consumers, params)


def _stack(site: Site, role: str, views: Sequence[View], params: Params) -> Tensor:
    """``(*tasks, *blocks, k, rest)`` in float64: V, or U^T."""
    if not views:
        raise UserError(f"site '{site.name}' has no {role}, so no gauge is defined there: leave it out")
    return stacked(views, params)


def stacked(views: Sequence[View], params: Params) -> Tensor:
    """What the views show side by side, ``(*tasks, *blocks, k, rest)`` in float64, detached."""
    return torch.cat([view.matrix(params[view.name].detach()).double() for view in views], dim=-1)


def _require_gauges(site: Site) -> None:
    if not site.group.has_gauges:
        raise UserError(
            f"no gauge has a formula in {type(site.group).__name__}, the group of site '{site.name}': search it with "
            "an objective, or leave the site out"
        )


def _triangle(matrix: Tensor) -> Tensor:
    """R (k x k) of the QR decomposition of M^T, so that ``M M^T = R^T R``, for M ``(*tasks, *blocks, k, rest)``."""
    k, rest = matrix.shape[-2:]
    return torch.linalg.qr(pad(matrix, (0, max(0, k - rest))).mT, mode="r").R


def _full_rank(values: Tensor) -> Tensor:
    """Singular values ``(..., k)`` in falling order, nan throughout where the smallest is zero to working precision."""
    least = values.shape[-1] * torch.finfo(values.dtype).eps * values[..., :1]
    return torch.where(values[..., -1:] > least, values, torch.nan)
