"""All graphs of one model, walked into one set of units: a symmetry must hold in each of them.

The units of a graph are its own; those that the same entries of a parameter make or read in several graphs are joined.
What no graph shows is not known to hold anything: a parameter of which the graphs see a part is moved as a whole or not
at all, and one that no graph sees bars all units that are at hand in the modules that hold it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from meta_teleport.detection.view_inference import on_parameter
from meta_teleport.detection.walk import Walk
from meta_teleport.operations.labels import ZERO, differ, has_nothing, squeeze_repeats, varies
from meta_teleport.operations.units import KINDS, Units, Use, disjoint, is_same
from meta_teleport.tracing.trace import Trace

UNSEEN = -3


class Graphs:
    """The marks of several graphs of one model. ``frozen`` says which of its parameters must not move, and why."""

    def __init__(self, model: nn.Module, traces: Sequence[Trace], frozen: Mapping[str, str]) -> None:
        self.model, self.units = model, Units()
        self.buffers = [name for name, _ in model.named_buffers()]
        self.shapes = {name: tensor.shape for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        self.walks = [Walk(traced, self.units) for traced in traces]
        for i, walk in enumerate(self.walks):
            self.units.graph = i
            walk.run()
        for uses in self._by_parameter().values():
            self._forbid_blind(uses)
        self._forbid_experts_used_otherwise()
        self._freeze(frozen)
        self.units.uses = [use for uses in self._by_parameter().values() for use in self._joined(uses)]

    def unseen(self) -> list[str]:
        """The parameters that no graph sees."""
        seen = {use.parameter for use in self.units.uses}.union(self.buffers)
        return [name for name, shape in self.shapes.items() if name not in seen and shape.numel()]

    def bar_unseen(self, names: Iterable[str]) -> None:
        """Bars the units that some parameters could make or read: those at hand in the modules that hold them, for
        which the graphs must have been traced with scopes."""
        first = {module: name for name, module in self.model.named_modules()}
        alias = {name: first[module] for name, module in self.model.named_modules(remove_duplicate=False)}
        known = {parameter: name for name, parameter in self.model.named_parameters()}
        holders: dict[str, set[str]] = {name: set() for name in names}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if known[parameter] in holders:
                parts = name.split(".")
                holders[known[parameter]] |= {alias[".".join(parts[:i])] for i in range(len(parts))}
        for walk in self.walks:
            for scope, units in walk.at_hand.items():
                for name in (name for name, held in holders.items() if alias.get(scope) in held):
                    self.units.forbid(units, KINDS, f"could meet '{name}', which no trace has seen")

    def _forbid_blind(self, uses: list[Use]) -> None:
        """A weight that has read nothing but zeros (the first state of a loop that runs once) may read units in a
        longer loop: what it makes may not move."""
        for use in uses:
            if use.left is None or use.right is None or not bool((use.right == ZERO).any()):
                continue
            blind = use.right == ZERO
            for other in uses:
                if other.right is not None and is_same(other, use) and other.right.shape == blind.shape:
                    blind = blind & (other.right == ZERO)
            left, blind = torch.broadcast_tensors(use.left, blind)
            self.units.forbid_labels(left[blind], KINDS, f"are made by '{use.parameter}', which has read only zeros")

    def _freeze(self, frozen: Mapping[str, str]) -> None:
        for use in self.units.uses:
            if use.parameter in frozen:
                self._bar(use, f"depend on '{use.parameter}', which {frozen[use.parameter]}")

    def _forbid_experts_used_otherwise(self) -> None:
        """Experts change places only if every use of their weights, in every graph, is by the choice of a router."""
        uses = Counter((use.parameter, use.graph, use.of_experts) for use in self.units.uses)
        for use in (use for use in self.units.uses if use.of_experts):
            if any(uses[use.parameter, i, True] != uses[use.parameter, i, False] for i in range(len(self.walks))):
                self._bar(use, f"stand for experts, whose '{use.parameter}' is used otherwise, too")

    def _by_parameter(self) -> dict[tuple[str, bool], list[Use]]:
        uses: dict[tuple[str, bool], list[Use]] = {}
        for use in self.units.uses:
            uses.setdefault((use.parameter, use.of_experts), []).append(use)
        return uses

    def _joined(self, uses: list[Use]) -> list[Use]:
        """The uses of a parameter in one graph that sees it, the units of all others joined to theirs: in the one in
        which it reads units most, as the first step of a loop reads zeros."""
        shape = self.shapes[uses[0].parameter]
        graphs = [[use for use in uses if use.graph == graph] for graph in dict.fromkeys(use.graph for use in uses)]
        graphs.sort(key=lambda seen: sum(_reads_nothing(use) for use in seen) / len(seen))
        parts = [not _is_covered(seen, shape) for seen in graphs]
        extended = [
            [self._extended(use, shape) for use in seen] if part else seen
            for seen, part in zip(graphs, parts, strict=True)
        ]
        if any(use is None for seen in extended for use in seen):
            for use in uses:
                self._bar(use, f"depend on '{use.parameter}', of which {use.place} may take a part")
            return graphs[0]
        graphs = [[use for use in seen if use is not None] for seen in extended]
        for seen, part in zip(graphs, parts, strict=True):
            for use in seen[1:] if part else ():
                self._share(seen[0], use, shape)
        for seen in graphs[1:]:
            for new in _distinct(seen):
                for old in _distinct(graphs[0]):
                    if not disjoint(old, new):
                        self._share(old, new, shape)
        return graphs[0]

    def _extended(self, use: Use, shape: torch.Size) -> Use | None:
        """A use of a part as one of the whole parameter, if units are the same along the axes that are cut; what is
        seen of it may depend on the size of the inputs."""
        sides = []
        for labels in (use.left, use.right):
            placed = None if labels is None else _placed(use, self._merged(labels), shape)
            if labels is not None and (placed is None or bool((placed == UNSEEN).any())):
                return None
            sides.append(placed)
        axes = (torch.arange(n).reshape([-1 if i == j else 1 for j in range(len(shape))]) for i, n in enumerate(shape))
        return replace(use, coordinates=tuple(a.expand(shape) for a in axes), left=sides[0], right=sides[1])

    def _merged(self, labels: Tensor) -> Tensor:
        """Labels with the first unit in place of all that are joined to it."""
        first: dict[object, int] = {}
        units, places = labels.unique(return_inverse=True)
        merged = [
            first.setdefault((self.units.scaled.root(unit), self.units.permuted.root(unit)), unit)
            if unit >= 0
            else unit
            for unit in units.tolist()
        ]
        return torch.tensor(merged)[places]

    def _share(self, old: Use, new: Use, shape: torch.Size) -> None:
        """Joins the units that the same entries make, and those that they read."""
        for a, b in ((old.left, new.left), (old.right, new.right)):
            if a is None and b is None:
                continue
            alike = old.shift == new.shift
            if alike and a is not None and b is not None and a.shape == b.shape and _is_same(old, new):
                self.units.join(a, b, f"'{old.parameter}', which {old.place} and {new.place} share")
                continue
            placed = [None if side is None else _placed(use, side, shape) for side, use in ((a, old), (b, new))]
            if placed[0] is None or placed[1] is None or not alike:
                for use in (old, new):
                    self._bar(use, f"depend on '{use.parameter}', which {old.place} and {new.place} use in two ways")
                return
            x, y = torch.broadcast_tensors(*placed)
            known = (x != UNSEEN) & (y != UNSEEN)
            x, y = (x, y) if bool(known.all()) else (x[known], y[known])
            self.units.join(x, y, f"'{old.parameter}', which {old.place} and {new.place} share")

    def _bar(self, use: Use, reason: str) -> None:
        for labels in (use.left, use.right):
            if labels is not None:
                self.units.forbid_labels(labels, KINDS, reason)


def _reads_nothing(use: Use) -> bool:
    return use.right is not None and has_nothing(use.right)


def _placed(use: Use, labels: Tensor, shape: torch.Size) -> Tensor | None:
    """Labels in the parameter's own axes, ``UNSEEN`` where the use sees nothing; None if an entry has two."""
    if not shape:
        return labels
    for axis, along in enumerate(varies(labels)):
        labels = labels if along else labels.narrow(axis, 0, 1)
    found = on_parameter(use, labels, shape, UNSEEN)
    return None if found is None else found[0]


def _is_covered(uses: Iterable[Use], shape: torch.Size) -> bool:
    """Whether some uses see every entry of a parameter."""
    seen = torch.zeros(shape, dtype=torch.bool)
    for use in uses:
        if all(c.shape == shape for c in use.coordinates) and not any(
            differ(c, torch.arange(n).reshape([-1 if i == j else 1 for j in range(len(shape))]))
            for i, (c, n) in enumerate(zip(use.coordinates, shape, strict=True))
        ):
            return True
        seen[tuple(squeeze_repeats(*torch.broadcast_tensors(*use.coordinates)))] = True
    return bool(seen.all())


def _distinct(uses: list[Use]) -> list[Use]:
    """The first of all uses that see the same entries in the same order: one graph has joined the units of these."""
    found: list[Use] = []
    for use in uses:
        if not any(_is_same(use, other) for other in found):
            found.append(use)
    return found


def _is_same(a: Use, b: Use) -> bool:
    return all(x.shape == y.shape and not differ(x, y) for x, y in zip(a.coordinates, b.coordinates, strict=True))
