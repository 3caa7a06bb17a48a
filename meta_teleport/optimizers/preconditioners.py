"""Second moments in factors, along the group action.

Where a site moves a parameter along one of its axes, the gradient G goes to ``A G``, A the dual element on that axis
(``G A^T`` along the other). With L and R the Gram matrices of G along its two axes (more for convolutions):

    L = E[G G^T]               A L A^T                                      exact
    R = E[G^T G]               R tr(A L A^T) / tr(L)                        exact in its trace, and where L and R say
                                                                            all, as Shampoo takes it: cov(G) = L x R
    L^(-1/n) (Shampoo)         that of the moved L                          exact
    Q (SOAP), a basis          the orthogonal factor of A Q                 a choice; A Q itself for orthogonal A
    v = E[(Q^T G)^2] (SOAP)    (M * M) v, M = Q'^T A Q, entry by entry      exact where the rotated entries do not
                                                                            correlate, as SOAP takes it; for orthogonal
                                                                            A always
    r, c of Adafactor          rows and columns of (A * A) r c^T / mean(r)  exact of what r and c stand for

Along other axes alike. With momentum, Shampoo keeps preconditioned gradients, which have no law.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from meta_teleport.errors import UserError
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry

Move = Callable[[Tensor], Tensor]
Writes = list[tuple[Tensor, Tensor]]

FACTORS = (("row_var", "col_var", True), ("exp_avg_sq_row", "exp_avg_sq_col", False))
"""The names that the factors go by in torch and elsewhere, and whether they keep the axis of the mean."""


def moved_jointly(
    optimizer: Optimizer,
    entrywise: Collection[str],
    names: Mapping[Tensor, str],
    symmetry: Symmetry,
    elements: Sequence[Tensor],
    squares: Callable[[str, Tensor], Tensor],
) -> Writes:
    """What to write into entries that move together, of the named parameters that a site moves: pairs of a tensor and
    its new value. ``squares(name, vector)`` moves squared gradients; the ``entrywise`` entries are seen to elsewhere.

    Raises ``UserError`` for entries that nothing is known of, and for preconditioners that are not one per axis.
    """
    touched = {name for site in symmetry.sites for name in site.parameters}
    writes: Writes = []
    for p, state in optimizer.state.items():
        name = names.get(p)
        if name is None or name not in touched:
            continue
        known = {*entrywise, *_entries_of(state)}
        for key, entry in state.items():
            if isinstance(entry, Tensor) and entry.ndim and key not in known:
                raise UserError(
                    f"the state of {type(optimizer).__name__} has an entry '{key}' that has no law: use state='reset' "
                    "or 'keep'"
                )
        if factors := _factors(state):
            writes += factors.writes(squares(name, factors.squares))
        if "GG" in state:
            writes += _moved_soap(state, p, _axis_maps(name, p, symmetry, elements))
        if "pre_cond_0" in state:
            writes += _moved_shampoo(state, p, _axis_maps(name, p, symmetry, elements))
    return writes


def _entries_of(state: dict[str, Any]) -> set[str]:
    """The entries of one parameter's state that are seen to here. Shampoo's momentum is not read where it is zero."""
    found = {name for *names, _ in FACTORS for name in names}
    if "GG" in state:
        found.add("exp_avg_sq")
    if "pre_cond_0" in state:
        found |= {"momentum_buffer", *(key for key in state if "pre_cond_" in key)}
    return found


class _Factors(NamedTuple):
    """The means of squared gradients over the last and over the last but one axis, as the state holds them: with that
    axis ``kept``, or without."""

    rows: Tensor
    columns: Tensor
    kept: bool

    @property
    def squares(self) -> Tensor:
        """What they stand for, in the shape of the parameter."""
        r, c = (self.rows, self.columns) if self.kept else (self.rows.unsqueeze(-1), self.columns.unsqueeze(-2))
        return r * c / r.mean(-2, keepdim=True).clamp(min=torch.finfo(r.dtype).tiny)

    def writes(self, squares: Tensor) -> Writes:
        """What to write into them for ``squares``."""
        pairs = ((self.rows, squares.mean(-1)), (self.columns, squares.mean(-2)))
        return [(kept, mean.reshape_as(kept)) for kept, mean in pairs]


def _factors(state: dict[str, Any]) -> _Factors | None:
    """The factors in the state of one parameter, if it has them."""
    found = ((state[row], state[column], kept) for row, column, kept in FACTORS if row in state)
    return next((_Factors(*factors) for factors in found), None)


def _axis_maps(name: str, p: Tensor, symmetry: Symmetry, elements: Sequence[Tensor]) -> list[Tensor | None]:
    """The matrix that gradients of ``p`` are multiplied by along each of its axes; None where nothing acts.

    Raises ``UserError`` where a site acts on a part of the columns alone, which is no such product.
    """
    maps: list[Tensor | None] = [None] * p.ndim
    for site, g in zip(symmetry.sites, elements, strict=True):
        for view in (*site.producers, *site.consumers):
            if view.name != name:
                continue
            produces = view in site.producers
            part = replace(site, producers=(view,) if produces else (), consumers=() if produces else (view,))
            axis, a = _product(partial(_transported, part, g, name), p.detach().to(g), name)
            known = maps[axis]
            maps[axis] = a if known is None else a @ known
    return maps


def _transported(site: Site, g: Tensor, name: str, gradient: Tensor) -> Tensor:
    return site.transport({name: gradient}, g)[name]


def _product(act: Move, like: Tensor, name: str) -> tuple[int, Tensor]:
    """The axis and the matrix that a linear map multiplies by."""
    probe = torch.arange(1.0, like.numel() + 1).to(like).cos().view_as(like)
    expected, size = act(probe), float(probe.norm())
    for axis, n in enumerate(like.shape):
        rest = like.numel() // n
        columns = []
        for start in range(0, n, rest):  # as many unit vectors at a time as there are columns
            width = min(rest, n - start)
            units = like.new_zeros(n, rest)
            units[start : start + width, :width].fill_diagonal_(1.0)
            columns.append(_front(act(_back(units, axis, like)), axis)[:, :width])
        a = torch.cat(columns, 1)
        error = float((_along(probe, a, axis) - expected).norm())
        if error <= torch.finfo(like.dtype).eps ** 0.5 * size * float(a.norm()):
            return axis, a
    raise UserError(
        f"a site moves a part of '{name}' along two of its axes at once, for which preconditioners have no law: use "
        "state='reset' or 'keep'"
    )


def _moved_grams(grams: Sequence[Tensor], p: Tensor, maps: Sequence[Tensor | None]) -> list[Tensor]:
    if [len(gram) for gram in grams if len(gram)] != [n for n, gram in zip(p.shape, grams, strict=False) if len(gram)]:
        raise UserError("preconditioners of merged dimensions have no law: use merge_dims=False, or state='reset'")
    moved, growth = [], []
    for gram, a in zip(grams, maps, strict=True):
        here = gram if a is None or not len(gram) else a.to(gram) @ gram @ a.to(gram).T
        if a is not None and not len(gram) and any(len(other) for other in grams):
            raise UserError("an axis without a preconditioner moves: raise max_precondition_dim, or use state='reset'")
        growth.append(1.0 if a is None or not len(gram) else float(here.trace() / gram.trace()))
        moved.append(here)
    total = torch.tensor(growth, dtype=torch.float64).prod()
    return [m * float(total / own) if len(m) else m for m, own in zip(moved, growth, strict=True)]


def _moved_shampoo(state: dict[str, Any], p: Tensor, maps: Sequence[Tensor | None]) -> Writes:
    names = [f"pre_cond_{axis}" for axis in range(p.ndim)]
    grams = [state[name] for name in names]
    moved = _moved_grams(grams, p, maps)
    writes = list(zip(grams, moved, strict=True))
    for name, gram in zip(names, moved, strict=True):
        inverse = state[f"inv_{name}"]
        if bool(inverse.any()):  # zeros until it is first computed
            writes.append((inverse, _power(gram, -0.5 / p.ndim)))
    return writes


def _moved_soap(state: dict[str, Any], p: Tensor, maps: Sequence[Tensor | None]) -> Writes:
    grams, bases, squares = state["GG"], state["Q"], state["exp_avg_sq"]
    if len(grams) != p.ndim:
        raise UserError("preconditioners of merged dimensions have no law: use merge_dims=False, or state='reset'")
    writes = [(gram, new) for gram, new in zip(grams, _moved_grams(grams, p, maps), strict=True) if len(gram)]
    for axis, a in enumerate(maps):
        if a is None:
            continue
        rotated = a.to(squares)
        if len(bases[axis]):
            basis, rotated = _orthogonal(rotated @ bases[axis].to(squares))
            writes.append((bases[axis], basis))
        squares = _along(squares, rotated.square(), axis)
    return [*writes, (state["exp_avg_sq"], squares)]


def _orthogonal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Q and R of x = Q R with a positive diagonal."""
    q, r = torch.linalg.qr(x)
    signs = r.diagonal().sign() + (r.diagonal() == 0)
    return q * signs, r * signs.unsqueeze(1)


def _power(gram: Tensor, exponent: float) -> Tensor:
    u, values, vh = torch.linalg.svd(gram)
    return (u * values.pow(exponent)) @ vh


def _along(x: Tensor, a: Tensor, axis: int) -> Tensor:
    """``x`` with every vector along the axis multiplied by a."""
    return _back(a @ _front(x, axis), axis, x)


def _front(x: Tensor, axis: int) -> Tensor:
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)


def _back(x: Tensor, axis: int, like: Tensor) -> Tensor:
    return x.reshape(like.movedim(axis, 0).shape).movedim(0, axis)
