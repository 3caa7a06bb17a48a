"""From marks on a parameter's entries to a :class:`View` of it.

A walk leaves, for one use of a parameter, the rank of the unit that each entry makes or reads. A view exists where
these ranks form a grid: along every axis of the parameter a mixed-radix number, whose digits count units, blocks of
units (heads), or nothing (the rest). Where they do not (interleaved heads, shuffled channels), every place is spelled
out.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from meta_teleport.operations.labels import squeeze_repeats
from meta_teleport.operations.units import Use
from meta_teleport.symmetry.gathered import Gathered
from meta_teleport.symmetry.views import View

Spans = list[tuple[int, int] | None]


@dataclass(frozen=True)
class Digit:
    """One factor of an axis: ``size`` steps, each of which raises the rank by ``weight`` (0: not at all)."""

    size: int
    weight: int


def view(use: Use, ranks: Tensor, rows: Tensor, shape: torch.Size, blocks: int, k: int) -> View | None:
    """The view of a parameter of that ``shape`` whose units have the given ranks, or None if there is no such view.

    ``ranks``, broadcastable to the use's coordinates, are ``block * k + unit``, and -1 for entries of other sites.
    Units of a block that a column of the view's matrix holds must be of one row: ``rows`` number, for every rank, the
    units that have it.
    """
    many = int(rows.max()) + 1
    found = on_parameter(use, torch.where(ranks < 0, -1, ranks * many + rows), shape)
    if found is None:
        return None
    return _by_factors(use.parameter, *found, many, shape, blocks, k) or _by_places(
        use.parameter, *found, many, shape, blocks, k
    )


def _by_factors(
    name: str, placed: Tensor, covered: Spans, many: int, shape: torch.Size, blocks: int, k: int
) -> View | None:
    """The view by factors of the axes."""
    part = None
    for axis in range(len(shape)):
        span = covered[axis] if placed.shape[axis] == 1 else _span(placed, axis)
        if span is None:
            return None
        if span != (0, shape[axis]):
            if part is not None:
                return None
            part = (axis, *span)
            if placed.shape[axis] > 1:
                placed = placed.narrow(axis, *span)
    if bool((placed < 0).any()):
        return None
    placed, rows = placed // many, placed % many  # in the axes of the slice, size 1 where nothing depends on the axis
    digits = [
        [Digit(part[2] if part and part[0] == axis else shape[axis], 0)]
        if placed.shape[axis] == 1
        else _digits(_along(placed, axis), k)
        for axis in range(len(shape))
    ]
    if not _reproduces(placed, digits):
        return None
    seen = _assemble(name, len(shape), digits, part, blocks, k)
    return seen if seen is not None and _aligned(seen, rows, digits) else None


def _by_places(
    name: str, placed: Tensor, covered: Spans, many: int, shape: torch.Size, blocks: int, k: int
) -> View | None:
    """The view by the place of every entry; a column holds entries at one distance from the first of their unit."""
    whole = placed.expand(shape).clone()
    for axis, span in enumerate(covered):
        if placed.shape[axis] == 1 and span != (0, shape[axis]):
            if span is None:
                return None
            whole.narrow(axis, 0, span[0]).fill_(-1)
            whole.narrow(axis, sum(span), shape[axis] - sum(span)).fill_(-1)
    flat = whole.flatten()
    seen = (flat >= 0).nonzero().squeeze(1)
    ranks = flat[seen] // many
    if len(seen) % (blocks * k) or bool((ranks.bincount(minlength=blocks * k) * blocks * k != len(seen)).any()):
        return None
    places = seen[ranks.argsort(stable=True)].reshape(blocks, k, -1)  # (blocks, k, rest): the entries of each unit
    distances, rows = places - places[..., :1], flat[places] % many  # both (blocks, k, rest)
    if bool((distances != distances[:, :1]).any() or (rows != rows[:, :1]).any()):
        return None
    return Gathered(name, len(shape), tuple(shape), (1,), (0,), places=places if blocks > 1 else places[0])


def _aligned(seen: View, rows: Tensor, digits: list[list[Digit]]) -> bool:
    """Whether every column of the view's matrix holds units of one row."""
    if len(rows.unique()) == 1:
        return True
    whole = rows.expand([prod(digit.size for digit in axis) for axis in digits])
    columns = replace(seen, part=None).matrix(whole)
    return bool((columns == columns[..., :1, :]).all())


def on_parameter(use: Use, ranks: Tensor, shape: torch.Size, unseen: int = -1) -> tuple[Tensor, Spans] | None:
    """Ranks in the parameter's own axes (size 1 along those on which they do not depend; ``unseen`` where nothing was),
    and the range of entries seen along each axis, None where it has gaps. None if an entry has two ranks."""
    coordinates = torch.broadcast_tensors(ranks, *use.coordinates)
    ranks, places = coordinates[0], coordinates[1:]  # in the axes of what the operation saw; one place per own axis
    matters = [_depends(ranks, axis) for axis in range(ranks.ndim)]
    deep = [any(m and _depends(c, axis) for axis, m in enumerate(matters)) for c in places]
    for axis in range(ranks.ndim):
        if not matters[axis] and not any(_depends(c, axis) for c, d in zip(places, deep, strict=True) if d):
            ranks = ranks.narrow(axis, 0, 1)
            places = tuple(c.narrow(axis, 0, 1) if d else c for c, d in zip(places, deep, strict=True))
    own = [n if d else 1 for n, d in zip(shape, deep, strict=True)]
    placed = torch.full(own, unseen)  # in the parameter's own axes
    index = tuple(
        c.expand(ranks.shape) if d else torch.zeros((), dtype=torch.long).expand(ranks.shape)
        for c, d in zip(places, deep, strict=True)
    )
    placed[index] = ranks if index else ranks.reshape(-1)[0]
    if bool((placed[index] != ranks).any()):
        return None
    return placed, [_seen(c) for c in use.coordinates]


def _depends(tensor: Tensor, axis: int) -> bool:
    return tensor.shape[axis] > 1 and tensor.stride(axis) != 0


def _seen(coordinate: Tensor) -> tuple[int, int] | None:
    values = squeeze_repeats(coordinate)[0].unique()
    low, high = int(values[0]), int(values[-1])
    return (low, len(values)) if high - low + 1 == len(values) else None


def _span(placed: Tensor, axis: int) -> tuple[int, int] | None:
    """The range along an axis outside of which there are only entries of other sites."""
    inside = (placed >= 0).movedim(axis, 0).reshape(placed.shape[axis], -1).any(1).nonzero().squeeze(1)
    low, high = int(inside[0]), int(inside[-1])
    return (low, high - low + 1)


def _along(placed: Tensor, axis: int) -> list[int]:
    """The ranks along one axis, counted from its first entry, at the start of all others."""
    line = placed.movedim(axis, 0).reshape(placed.shape[axis], -1)[:, 0]
    ranks: list[int] = (line - line[0]).tolist()
    return ranks


def _digits(line: list[int], k: int) -> list[Digit]:
    """The mixed-radix digits of a line of ranks, outermost first; a digit that runs over blocks is cut in two.

    Those of a line that has none do not give it back, see :func:`_reproduces`.
    """
    digits: list[Digit] = []
    while len(line) > 1:
        weight = line[1] - line[0]
        size = next((i for i, (a, b) in enumerate(pairwise(line), 1) if b - a != weight), len(line))
        while len(line) % size:
            size -= 1
        if size == 1:
            return [Digit(len(line), weight), *digits[::-1]]
        inner = k // weight if 0 < weight < k and k % weight == 0 else 0
        if inner and size > inner and size % inner == 0:
            digits += [Digit(inner, weight), Digit(size // inner, weight * inner)]
        else:
            digits.append(Digit(size, weight))
        line = line[::size]
    return digits[::-1] or [Digit(1, 0)]


def _reproduces(placed: Tensor, digits: list[list[Digit]]) -> bool:
    """Whether the digits of all axes give back every rank."""
    total = placed.reshape(-1)[0]
    for axis, factors in enumerate(digits):
        line = torch.zeros(1, dtype=torch.long)
        for digit in factors:
            line = (line.unsqueeze(1) + digit.weight * torch.arange(digit.size)).reshape(-1)
        if placed.shape[axis] > 1:
            total = total + line.reshape([-1 if i == axis else 1 for i in range(placed.ndim)])
    return bool((total == placed).all()) if placed.ndim else True


def _assemble(
    name: str, ndim: int, digits: list[list[Digit]], part: tuple[int, int, int] | None, blocks: int, k: int
) -> View | None:
    factors = [digit for axis in digits for digit in axis]
    order = sorted(range(len(factors)), key=lambda i: -factors[i].weight)
    units = tuple(i for i in order if 0 < factors[i].weight < k)
    outer = tuple(i for i in order if factors[i].weight >= k)
    if k == 1:
        units = ()
    sizes = tuple(digit.size for digit in factors)
    if prod(sizes[i] for i in units) != k or prod(sizes[i] for i in outer) != blocks:
        return None
    return View(name, ndim, sizes, units, outer, part)
