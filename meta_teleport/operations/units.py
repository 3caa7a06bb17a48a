"""Units: the numbers of a network that a symmetry could move, and what the network says about them.

Every output of a layer with parameters is a *unit*. While the graph of a model is walked, each operation leaves marks:

* two units are **joined** if they must be scaled by the same number (a residual addition), or by inverse numbers (a
  query and the key it is multiplied with), and permuted together;
* a kind of motion (mixing, scaling, flipping signs, permuting) is **forbidden** to a unit, with the reason;
* a unit is **touched** by an operation. Units that the same operations touch can be mixed with one another;
* a parameter is **used**: its entries make some units (left) from others (right).

What is left afterwards is the symmetry.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from meta_teleport.operations.forest import Forest
from meta_teleport.operations.labels import FIXED, differ, distinct, squeeze_repeats

Kind = Literal["mix", "scale", "flip", "permute"]
KINDS: tuple[Kind, ...] = ("mix", "scale", "flip", "permute")


@dataclass(frozen=True)
class Use:
    """One use of a parameter by one operation.

    ``coordinates``, one tensor per axis of the parameter, say which of its entries the operation saw, in the shape in
    which it saw them. ``left`` are the units that an entry makes, ``right`` those that it reads, both broadcastable to
    that shape; None where there are none. ``graph`` is the number of the graph that the operation belongs to. If it
    ``permutes_only``, entries change places with the units, and stay as they are when units are scaled. What acts on
    units are the entries plus ``shift``, or a multiple of that. Units ``of_experts`` stand for whole experts, among
    which others can be moved in the same way.
    """

    parameter: str
    coordinates: tuple[Tensor, ...]
    left: Tensor | None
    right: Tensor | None
    place: str
    graph: int = 0
    permutes_only: bool = False
    shift: float = 0.0
    of_experts: bool = False


@dataclass(frozen=True)
class Normalized:
    """What stands behind a weight that is normalized over all axes but one: a ``parameter`` whose size does not matter,
    and a ``gain`` (a parameter and its coordinates) for every index along that ``axis``, if there is one."""

    parameter: str
    axis: int
    gain: str = ""
    coordinates: tuple[Tensor, ...] = ()


class Units:
    """All units of one model, and the marks on them."""

    def __init__(self) -> None:
        self.scaled, self.permuted = Forest(), Forest()
        self.forbidden: dict[Kind, dict[int, str]] = {kind: {} for kind in KINDS}
        self.touched: list[set[object]] = []
        self.uses: list[Use] = []
        self.graph = 0
        self.kinds: dict[tuple[int, str, bool], list[Use]] = {}  # per parameter and graph, the first of each kind
        self.normalized: dict[str, Normalized] = {}
        self.shifted: dict[str, tuple[str, float]] = {}

    def fresh(self, count: int, touch: object) -> Tensor:
        """``count`` new units, touched by the operation that makes them."""
        first = len(self.touched)
        self.scaled.grow(count)
        self.permuted.grow(count)
        self.touched.extend({touch} for _ in range(count))
        return torch.arange(first, first + count)

    def join(self, a: Tensor, b: Tensor, place: str, sign: int = 1) -> None:
        """Joins the units at corresponding places of two label tensors. Where one is fixed, the other may not move."""
        for i, j in distinct(a, b):
            if i >= 0 and j >= 0:
                if not self.scaled.join(i, j, sign):
                    self.forbid([i], ("mix", "scale"), f"meet their own inverse in {place}", odd=True)
                self.permuted.join(i, j, 1)
            elif FIXED in (i, j) and (unit := max(i, j)) >= 0:
                self.forbid([unit], KINDS, f"meet what does not move in {place}")

    def couple(self, a: Tensor, b: Tensor, place: str) -> None:
        """Joins for permutations only: the units of a gate and those that it gates. What meets a number instead, or
        nothing, keeps its place."""
        for i, j in distinct(a, b):
            if i >= 0 and j >= 0:
                self.permuted.join(i, j, 1)
            elif (unit := max(i, j)) >= 0:
                self.forbid([unit], ["permute"], f"meet what does not move in {place}")

    def forbid(self, units: Iterable[int], kinds: Iterable[Kind], reason: str, odd: bool = False) -> None:
        """Forbids some kinds of motion to units. The first reason stays. What cannot be mixed or scaled cannot change
        its sign either, unless it is said that what forbids the former is ``odd``: f(-z) = -f(z), unit by unit."""
        units = [unit for unit in units if unit >= 0]
        forbidden: set[Kind] = set(kinds)
        if not odd and forbidden & {"mix", "scale"}:
            forbidden.add("flip")
        for kind in forbidden:
            for unit in units:
                self.forbidden[kind].setdefault(unit, reason)

    def forbid_labels(self, labels: Tensor, kinds: Iterable[Kind], reason: str, odd: bool = False) -> None:
        """:meth:`forbid` for all units in a label tensor."""
        self.forbid((unit for (unit,) in distinct(labels)), kinds, reason, odd)

    def touch(self, units: Iterable[int], touch: object) -> None:
        """Notes an operation that sees these units together."""
        for unit in units:
            if unit >= 0:
                self.touched[unit].add(touch)

    def use(
        self,
        parameter: str,
        coordinates: tuple[Tensor, ...],
        left: Tensor | None,
        right: Tensor | None,
        place: str,
        permutes_only: bool = False,
        shift: float = 0.0,
        of_experts: bool = False,
    ) -> None:
        """Notes a use of a parameter. A second use of the same entries in a graph must say the same of them."""
        if any(not axis.numel() for axis in coordinates):
            return None
        new = Use(parameter, coordinates, left, right, place, self.graph, permutes_only, shift, of_experts)
        self.uses.append(new)
        kinds = self.kinds.setdefault((self.graph, parameter, of_experts), [])
        for old in kinds:
            if _same_kind(old, new):  # what other kinds have said of the units of this one, they say of those of all
                return self._share(old, new, same=True)
        for old in kinds:
            if not disjoint(old, new):
                self._share(old, new, _is_alike(old, new) and is_same(old, new))
        kinds.append(new)

    def shift(self, parameter: str, number: float) -> str:
        """The name of a multiple of a parameter plus a number, for the rest of this graph."""
        name = f"{parameter} plus {number}, or a multiple"
        self.shifted[name] = (parameter, number)
        return name

    def behind(self, name: str) -> set[str]:
        """The tensors of which one is computed that has a name of its own for the rest of this graph."""
        if name in self.shifted:
            return {self.shifted[name][0]}
        return {self.normalized[name].parameter, self.normalized[name].gain} if name in self.normalized else set()

    def resolve(self) -> None:
        """Replaces the uses of weights that are computed from parameters by uses of these."""
        while computed := [use for use in self.uses if self.behind(use.parameter)]:
            self.uses = [use for use in self.uses if not self.behind(use.parameter)]
            for use in computed:
                if use.parameter in self.normalized:
                    self._use_behind(use, self.normalized[use.parameter])
                else:
                    parameter, shift = self.shifted[use.parameter]
                    self.use(parameter, use.coordinates, use.left, use.right, use.place, use.permutes_only, shift)
        self.normalized, self.shifted = {}, {}

    def _use_behind(self, use: Use, weight: Normalized) -> None:
        """Units that stand along the axis of the gain are scaled by it, all others cannot be scaled, and none can be
        mixed."""
        ends: list[Tensor | None] = []
        for labels in (use.left, use.right):
            ends.append(None if labels is None else _per_index(use.coordinates[weight.axis], labels))
            kinds: tuple[Kind, ...] = ("mix",) if weight.gain and ends[-1] is not None else ("mix", "scale")
            if labels is not None:
                self.forbid_labels(labels, kinds, f"meet a normalized weight in {use.place}")
        self.use(weight.parameter, use.coordinates, use.left, use.right, use.place, permutes_only=True)
        if weight.gain:
            self.use(weight.gain, weight.coordinates, ends[0], ends[1], use.place)

    def _share(self, old: Use, new: Use, same: bool) -> None:
        place = f"'{old.parameter}', which {old.place} and {new.place} share"
        for a, b in ((old.left, new.left), (old.right, new.right)):
            if same and a is not None and b is not None and a.shape == b.shape:
                self.join(a, b, place)
                continue
            for labels in (a, b):
                if labels is not None:
                    self.forbid_labels(labels, KINDS, f"depend on {place}")


def _per_index(coordinate: Tensor, labels: Tensor) -> Tensor | None:
    """The label that belongs to every index along an axis; None if there are several."""
    pairs = distinct(coordinate, labels)
    if [i for i, _ in pairs] != list(range(len(pairs))):
        return None
    return torch.tensor([label for _, label in pairs])


def _is_alike(a: Use, b: Use) -> bool:
    """Whether the entries that two uses share move alike if the units do."""
    return (a.permutes_only, a.shift) == (b.permutes_only, b.shift)


def _same_kind(a: Use, b: Use) -> bool:
    """Whether two uses see the same entries and have units on the same sides, in the same shape, to the same end."""
    sides = zip((a.left, a.right), (b.left, b.right), strict=True)
    return all(
        (x is None and y is None) or (x is not None and y is not None and x.shape == y.shape) for x, y in sides
    ) and (_is_alike(a, b) and is_same(a, b))


def is_same(a: Use, b: Use) -> bool:
    """Whether two uses see the same entries of the same parameter in the same order."""
    if a.parameter != b.parameter:
        return False
    return a.coordinates is b.coordinates or all(
        x.shape == y.shape and not differ(x, y) for x, y in zip(a.coordinates, b.coordinates, strict=True)
    )


def disjoint(a: Use, b: Use) -> bool:
    """Whether two uses see different entries: their ranges along some axis do not overlap."""
    return any(
        int(x.max()) < int(y.min()) or int(y.max()) < int(x.min())
        for x, y in zip(map(_range, a.coordinates), map(_range, b.coordinates), strict=True)
    )


def _range(coordinate: Tensor) -> Tensor:
    return squeeze_repeats(coordinate)[0]
