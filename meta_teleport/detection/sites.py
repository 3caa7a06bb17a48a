"""Sites and refusals, read off the marks that a walk has left on the units of a model."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from meta_teleport.detection.view_inference import view
from meta_teleport.operations.forest import Forest
from meta_teleport.operations.labels import ZERO, distinct
from meta_teleport.operations.units import Kind, Units
from meta_teleport.symmetry.groups import GL, Group, Permutation, PositiveScaling, SignFlips
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Refusal
from meta_teleport.symmetry.views import View

UNSEEN = (
    "is seen by no trace, so what could meet it stays: give inputs that use it (also=[...]), or leave its module "
    "closed (leaves=[...]) if nothing does"
)


class Marks(NamedTuple):
    """The units of one site and, for every unit of the model (and, at the end, for the negative labels): its rank
    ``block * k + unit`` or -1, its number among the units of that rank, and its sign."""

    units: set[int]
    rank: Tensor  # (all units + 2,); -1 and -2, the labels FIXED and ZERO, index the two at the end
    row: Tensor  # (all units + 2,)
    sign: Tensor  # (all units + 2,)


class Sites:
    """Reads the units of one model, whose parameters and buffers have the given shapes."""

    def __init__(self, units: Units, shapes: dict[str, torch.Size], buffers: Collection[str] = ()) -> None:
        self.units, self.shapes, self.buffers = units, shapes, buffers
        self.reasons: dict[int, str] = {}
        self.moved: set[int] = set()
        self.sides = [
            (use, labels, side)
            for use in units.uses
            for labels, side in ((use.left, 1), (use.right, -1))
            if labels is not None
        ]
        self.at: dict[int, set[int]] = defaultdict(set)
        for i, (_, labels, _) in enumerate(self.sides):
            for (unit,) in distinct(labels):
                self.at[unit].add(i)

    def sites(self) -> list[Site]:
        """All sites, in the order of the parameters that make their units."""
        scaled, permuted = _classes(self.units.scaled), _classes(self.units.permuted)
        free = [members for members in scaled if not self._is_forbidden(members, "mix")]
        bound = [members for members in scaled if self._is_forbidden(members, "mix")]
        rest = [members for members in bound if not self._is_forbidden(members, "scale")]
        odd = [m for m in bound if self._is_forbidden(m, "scale") and not self._is_forbidden(m, "flip")]
        found = [
            *self._bundled(free, GL),
            *self._bundled(rest, PositiveScaling),
            *self._bundled(odd, SignFlips),
        ]
        mixed = {unit for members in free for unit in members}
        alike = [
            members
            for members in permuted
            if not self._is_forbidden(members, "permute")
            and not mixed & set(members)
            and len(self.units.touched[members[0]])
        ]
        found += self._bundled(alike, Permutation)
        return _named(sorted(found, key=lambda site: self._position(site)))

    def refusals(self) -> list[Refusal]:
        """Which parameters make units that no continuous group moves, by reason; and those that make none."""
        by_reason: dict[str, dict[str, None]] = defaultdict(dict)
        seen = set(self.buffers)
        for use in (use for use in self.units.uses if use.parameter not in self.buffers):
            seen.add(use.parameter)
            made = [unit for (unit,) in distinct(use.left)] if use.left is not None else []
            if not made and use.right is None:
                by_reason[f"is used by {use.place}, on which no group acts"][use.parameter] = None
            for unit in made:
                if unit not in self.moved:
                    by_reason[f"makes units that {self._reason(unit)}"][use.parameter] = None
        for name in self.shapes:
            if name not in seen:
                by_reason[UNSEEN][name] = None
        return [Refusal(tuple(names), reason) for reason, names in by_reason.items()]

    def _reason(self, unit: int) -> str:
        root = self.units.scaled.root(unit)[0]
        return self.reasons.get(root, "nothing reads")

    def _is_forbidden(self, members: list[int], kind: Kind) -> bool:
        forbidden = self.units.forbidden[kind]
        reason = next((forbidden[unit] for unit in members if unit in forbidden), None)
        if reason is not None and kind == "scale":
            self.reasons[members[0]] = reason
        return reason is not None

    def _bundled(self, classes: list[list[int]], group: type[Group]) -> Iterator[Site]:
        """One site for all classes of units that the same operations touch. Units that are mixed or exchanged must be
        touched together, member by member of their classes; those that are (the heads of attention) are a block."""
        bundles: dict[frozenset[object], dict[object, list[list[int]]]] = {}  # a site: a block: its classes
        for members in classes:
            touched = [frozenset(self.units.touched[unit]) for unit in members]
            alike = frozenset(t[:2] if isinstance(t, tuple) else t for t in frozenset().union(*touched))
            together = None if group.is_diagonal else tuple(touched)
            bundles.setdefault(alike, {}).setdefault(together, []).append(members)
        for blocks in map(
            list, map(dict.values, bundles.values())
        ):  # blocks[head][unit] is a class, its members joined
            even = len({len(block) for block in blocks}) == 1
            for site in (self._site(some, group) for some in ([blocks] if even else [[block] for block in blocks])):
                if site is not None:
                    yield site

    def _site(self, blocks: list[list[list[int]]], group: type[Group]) -> Site | None:
        """The site of some blocks of classes of units, or None if one of its parameters has no view, or no role."""
        if not group.has_algebra and len(blocks[0]) == 1:
            return None
        marks = self._marks(blocks, group)
        sides: dict[int, dict[tuple[int, View], None]] = {1: {}, -1: {}}  # ordered sets of (made or read, view)
        for i in sorted(set().union(*(self.at[unit] for unit in marks.units))):
            use, labels, side = self.sides[i]
            if use.permutes_only and group.has_algebra:
                continue
            for way in (1, -1):
                ranks = torch.where(marks.sign[labels] == way, marks.rank[labels], -1)  # in the shape of the labels
                if bool((ranks < 0).all()):
                    continue
                seen = view(use, ranks, marks.row[labels], self.shapes[use.parameter], len(blocks), len(blocks[0]))
                if seen is None:
                    self.reasons.update((m[0], f"lie irregularly in '{use.parameter}'") for b in blocks for m in b)
                    return None
                shift = 0.0 if _exchanges(group) else use.shift
                sides[side * way][side, replace(seen, shift=shift) if shift else seen] = None
        producers, consumers = ([seen for _, seen in sides[role]] for role in (1, -1))
        if not producers or not consumers or (len(blocks[0]) == 1 and not group.has_algebra):
            return None
        if _exchanges(group):  # a diagonal whose rows and columns change places is one vector
            producers = list(dict.fromkeys(producers))
            consumers = [seen for seen in dict.fromkeys(consumers) if seen not in producers]
        else:  # what makes units and reads their inverse moves twice, what reads the same moves not at all
            for seen in [seen for seen in producers if seen in consumers]:
                producers.remove(seen)
                consumers.remove(seen)
            if not producers or not consumers:
                return None
        if group.has_algebra:
            self.moved |= marks.units
        shape = (len(blocks),) if len(blocks) > 1 else ()
        views = (tuple(v if shape else replace(v, blocks=()) for v in side) for side in (producers, consumers))
        return Site(self._name(producers[0], marks.units, group), group(len(blocks[0]), shape), *views)

    def _marks(self, blocks: list[list[list[int]]], group: type[Group]) -> "Marks":
        forest = self.units.permuted if _exchanges(group) else self.units.scaled
        rank = torch.full((len(self.units.touched) - ZERO,), -1)
        row, sign, units = torch.zeros_like(rank), torch.ones_like(rank), set()
        for i, members in enumerate(members for block in blocks for members in block):
            for j, unit in enumerate(members):
                rank[unit], sign[unit] = i, forest.root(unit)[1]
                row[unit] = 0 if group.is_diagonal else j
                units.add(unit)
        return Marks(units, rank, row, sign)

    def _name(self, first: View, units: set[int], group: type[Group]) -> str:
        """The first parameter that makes the units, and their role."""
        roles = {t[1] for unit in units for t in self.units.touched[unit] if isinstance(t, tuple)}
        role = {"key": " query-key", "value": " value-output"}.get("".join(roles), "")
        role = role if group.has_algebra and not group.is_diagonal else ""
        kind = "" if group.has_algebra else " permutation" if _exchanges(group) else " signs"
        return f"{first.name.removesuffix('weight').rstrip('._')}{role}{kind}"

    def _position(self, site: Site) -> tuple[int, str]:
        names = list(self.shapes)
        return names.index(site.producers[0].name), site.name


def _exchanges(group: type[Group]) -> bool:
    return not group.has_algebra and not group.is_diagonal


def _classes(forest: Forest) -> list[list[int]]:
    """The sets of a forest, members and sets in order."""
    sets: dict[int, list[int]] = defaultdict(list)
    for unit in range(len(forest.parent)):
        sets[forest.root(unit)[0]].append(unit)
    return list(sets.values())


def _named(sites: Iterable[Site]) -> list[Site]:
    """The sites with names of their own: a second one of a name gets a number."""
    seen: dict[str, int] = defaultdict(int)
    result = []
    for site in sites:
        seen[site.name] += 1
        result.append(site if seen[site.name] == 1 else replace(site, name=f"{site.name} {seen[site.name]}"))
    return result
