"""Disjoint sets of units whose members are alike, or inverse to one another."""

from dataclasses import dataclass, field


@dataclass
class Forest:
    """Disjoint sets of units by union-find, each member with a sign relative to the root: the smallest member."""

    parent: list[int] = field(default_factory=list)
    sign: list[int] = field(default_factory=list)

    def grow(self, count: int) -> None:
        """``count`` more units, each on its own."""
        self.parent.extend(range(len(self.parent), len(self.parent) + count))
        self.sign.extend([1] * count)

    def root(self, unit: int) -> tuple[int, int]:
        """The root of a unit's set and the unit's sign."""
        path, sign = [], 1
        while self.parent[unit] != unit:
            path.append(unit)
            unit = self.parent[unit]
        for step in reversed(path):
            sign *= self.sign[step]
            self.parent[step], self.sign[step] = unit, sign
        return unit, sign

    def join(self, a: int, b: int, sign: int) -> bool:
        """Joins two sets. False if they were one already, with the other sign."""
        (root_a, sign_a), (root_b, sign_b) = self.root(a), self.root(b)
        if root_a == root_b:
            return sign_a * sign_b == sign
        low, high = min(root_a, root_b), max(root_a, root_b)
        self.parent[high], self.sign[high] = low, sign_a * sign_b * sign
        return True
