"""From a model to its symmetry: trace it, walk its graph, read the sites off the marks, check them on numbers."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from meta_teleport.detection import (  # noqa: F401  (they register what operations mean)
    arithmetic,
    contractions,
    operations,
    rearrangements,
)
from meta_teleport.detection.check import Check
from meta_teleport.detection.lattice import view
from meta_teleport.detection.trace import Examples, arguments, trace
from meta_teleport.detection.units import Forest, Kind, Units, distinct
from meta_teleport.detection.walk import Walk
from meta_teleport.symmetry.groups import GL, Group, Permutation, PositiveScaling
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Refusal, Symmetry
from meta_teleport.symmetry.views import View


def find_symmetries(
    model: nn.Module,
    example_inputs: Examples,
    *,
    leaves: Sequence[str] = (),
    check: bool = True,
    generator: torch.Generator | None = None,
) -> Symmetry:
    """The symmetry of a model: all sites at which a group acts without changing what the model computes, for any input.

    ``example_inputs`` are a tensor, a tuple of arguments, or a dict of keyword arguments, on which the model runs. The
    model is traced in the mode it is in. Modules named in ``leaves`` are not looked into. The groups are GL(k) where
    units meet only linear maps (linear pairs, low-rank factors, and head by head queries with keys, values with
    outputs), positive scalings where they meet positively homogeneous functions (ReLU and its kin, scales of norms,
    gated products), and permutations of units where GL does not contain them. ``refusals`` of the result say which
    parameters make units that no continuous group moves, and why.

    With ``check`` all sites are tried with random elements in float64, in training and in evaluation; a site that moves
    the outputs is refused.

    Raises ``UserError``: see :func:`meta_teleport.detection.trace.trace`.
    """
    traced = trace(model, example_inputs, leaves)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    still = {name: "is frozen" for name, parameter in model.named_parameters() if not parameter.requires_grad}
    inside = {id(parameter) for leaf in leaves for parameter in model.get_submodule(leaf).parameters()}
    still |= {name: "a closed module uses" for name, p in model.named_parameters() if id(p) in inside}
    reader = Reader(Walk(traced, still).run(), shapes)
    sites, refusals = reader.sites(), reader.refusals()
    if check:
        generator = generator or torch.Generator().manual_seed(0)
        false = Check(model, *arguments(example_inputs)).false_sites(sites, generator)
        refusals += [
            Refusal(sites[i].parameters, f"'{sites[i].name}' moves the outputs by {drift:.1e}: not a symmetry")
            for i, drift in false.items()
        ]
        sites = [site for i, site in enumerate(sites) if i not in false]
    return Symmetry(tuple(sites), refusals=tuple(refusals))


class Reader:
    """Reads sites and refusals off the marks that a walk has left on the units of a model."""

    def __init__(self, units: Units, shapes: dict[str, torch.Size]) -> None:
        self.units, self.shapes = units, shapes
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
        free = [members for members in scaled if not self._barred(members, "mix")]
        rest = [m for m in scaled if self._barred(m, "mix") and not self._barred(m, "scale")]
        found = [
            *self._bundled(free, GL),
            *self._bundled(rest, PositiveScaling),
        ]
        mixed = {unit for members in free for unit in members}
        alike = [
            members
            for members in permuted
            if not self._barred(members, "permute") and not mixed & set(members) and len(self.units.touched[members[0]])
        ]
        found += self._bundled(alike, Permutation)
        return _named(sorted(found, key=lambda site: self._position(site)))

    def refusals(self) -> list[Refusal]:
        """Which parameters make units that no continuous group moves, by reason; and those that make none."""
        by_reason: dict[str, dict[str, None]] = defaultdict(dict)
        seen = set()
        for use in self.units.uses:
            seen.add(use.parameter)
            made = [unit for (unit,) in distinct(use.left)] if use.left is not None else []
            if not made and use.right is None:
                by_reason[f"is used by {use.place}, on which no group acts"][use.parameter] = None
            for unit in made:
                if unit not in self.moved:
                    by_reason[f"makes units that {self._reason(unit)}"][use.parameter] = None
        for name in self.shapes:
            if name not in seen:
                by_reason["is not seen by the traced operations"][name] = None
        return [Refusal(tuple(names), reason) for reason, names in by_reason.items()]

    def _reason(self, unit: int) -> str:
        root = self.units.scaled.root(unit)[0]
        return self.reasons.get(root, "nothing reads")

    def _barred(self, members: list[int], kind: Kind) -> bool:
        barred = self.units.barred[kind]
        reason = next((barred[unit] for unit in members if unit in barred), None)
        if reason is not None and kind == "scale":
            self.reasons[members[0]] = reason
        return reason is not None

    def _bundled(self, classes: list[list[int]], group: type[Group]) -> Iterator[Site]:
        """One site for all classes of units that the same operations touch. Units that are mixed or exchanged must be
        touched together, member by member of their classes; those that are (the heads of attention) are a block."""
        bundles: dict[frozenset[object], dict[object, list[list[int]]]] = {}
        for members in classes:
            touched = [frozenset(self.units.touched[unit]) for unit in members]
            alike = frozenset(t[:2] if isinstance(t, tuple) else t for t in frozenset().union(*touched))
            together = None if group is PositiveScaling else tuple(touched)
            bundles.setdefault(alike, {}).setdefault(together, []).append(members)
        for blocks in map(list, map(dict.values, bundles.values())):
            even = len({len(block) for block in blocks}) == 1
            for site in (self._site(some, group) for some in ([blocks] if even else [[block] for block in blocks])):
                if site is not None:
                    yield site

    def _site(self, blocks: list[list[list[int]]], group: type[Group]) -> Site | None:
        k = len(blocks[0])
        forest = self.units.permuted if group is Permutation else self.units.scaled
        rank = torch.full((len(self.units.touched) + 2,), -1)
        row, sign = torch.zeros_like(rank), torch.ones_like(rank)
        for i, members in enumerate(members for block in blocks for members in block):
            for j, unit in enumerate(members):
                rank[unit + 2], sign[unit + 2] = i, forest.root(unit)[1]
                row[unit + 2] = 0 if group is PositiveScaling else j
        units = {unit for block in blocks for members in block for unit in members}
        producers: list[View] = []
        consumers: list[View] = []
        for i in sorted(set().union(*(self.at[unit] for unit in units))):
            use, labels, side = self.sides[i]
            for way in (1, -1):
                ranks = torch.where(sign[labels + 2] == way, rank[labels + 2], -1)
                if bool((ranks < 0).all()):
                    continue
                seen = view(use, ranks, row[labels + 2], self.shapes[use.parameter], len(blocks), k)
                if seen is None:
                    self.reasons.update((m[0], f"lie irregularly in '{use.parameter}'") for b in blocks for m in b)
                    return None
                (producers if side * way > 0 else consumers).append(seen)
        if not producers or not consumers:
            return None
        if group is not Permutation:
            self.moved |= units
        role = {t[1] for unit in units for t in self.units.touched[unit] if isinstance(t, tuple)}
        name = producers[0].name.removesuffix("weight").rstrip("._")
        label = {"key": " query-key", "value": " value-output"}.get("".join(role), "") if group is GL else ""
        if group is Permutation:  # a diagonal whose rows and columns change places is one vector
            consumers = [seen for seen in consumers if seen not in producers]
        views = tuple(dict.fromkeys(producers)), tuple(dict.fromkeys(consumers))
        shape = (len(blocks),) if len(blocks) > 1 else ()
        permutes = " permutation" if group is Permutation else ""
        return Site(f"{name}{label}{permutes}", group(k, shape), *(_unblocked(v, shape) for v in views))

    def _position(self, site: Site) -> tuple[int, str]:
        names = list(self.shapes)
        return names.index(site.producers[0].name), site.name


def _unblocked(views: tuple[View, ...], blocks: tuple[int, ...]) -> tuple[View, ...]:
    return views if blocks else tuple(replace(v, blocks=()) for v in views)


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
