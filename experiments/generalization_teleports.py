"""The teleports of generalization.py: published and exact ones, to lower and to raise sharpness and curvature.

    published    action (b) of Zhao et al. 2024 on batches of 2000, plain gradient steps, which does not keep the
                 loss on so wide a batch; its sharpness looks into the orthant of non-negative directions only, its curvature
                 is that of the second pair of layers along one random M, whose entries are in [0, 1)
    scaling      exact positive scaling, steps of fixed length, sharpness on the whole sphere, curvature over all sites

and for each of them a control that goes as far in a random direction.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from image_teleports import as_far, climb, curvature_steps, gradient_steps, of_curvature, of_sharpness
from torch import Tensor

from meta_teleport.models import MLP
from meta_teleport.optimizers.copies import Copies, Jump, Search
from meta_teleport.symmetry.symmetry import Symmetry, mlp_symmetry
from meta_teleport.teleportation.ascent import Direction

Action = Literal["published", "scaling"]
Quantity = Literal["sharpness", "curvature"]

PLAIN = "none"
STEPS, CAP, SHARE = 10, 2.0, 0.9
"""Steps per batch; the mean perturbed loss above which the published search stops; and the share of the mean that it
takes for the mean, as it divides the sum over nine scales by ten."""

PUBLISHED_BATCHES = {"sharpness lower": 10, "sharpness raise": 2, "curvature lower": 5, "curvature raise": 10}
SCALING_BATCHES = 4
SCALING_SIZE = 0.1
"""Length of a step along the scalings."""

CURVED = "layers.1"
"""The site of the second pair of layers."""


@dataclass(frozen=True)
class Variant:
    """One way to teleport: along an action, to lower or to raise a quantity, or as far at random."""

    action: Action
    quantity: Quantity
    direction: Direction
    random: bool = False

    @property
    def aim(self) -> str:
        """What it wants."""
        return f"{self.quantity} {self.direction}"

    @property
    def name(self) -> str:
        """Its name in tables and files."""
        return f"{self.action}, {self.aim}" + ", random" * self.random

    @property
    def batches(self) -> int:
        """On how many batches it teleports, one before each of the first steps of an epoch."""
        return PUBLISHED_BATCHES[self.aim] if self.action == "published" else SCALING_BATCHES


PUBLISHED = (
    Variant("published", "sharpness", "lower"),
    Variant("published", "sharpness", "raise"),
    Variant("published", "curvature", "lower"),
    Variant("published", "curvature", "raise"),
)
SCALING = (
    Variant("scaling", "sharpness", "lower"),
    Variant("scaling", "sharpness", "raise"),
    Variant("scaling", "curvature", "lower"),
    Variant("scaling", "curvature", "raise"),
)
"""Every aim of every action."""


@dataclass
class Teleports:
    """Moves copies of ``model`` by variants. ``sizes`` are the published step sizes by aim; ``directions`` how many
    random directions sharpness and curvature average over, per batch."""

    model: MLP
    sizes: dict[str, float]
    directions: int
    _gone: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def symmetry(self, variant: Variant) -> Symmetry:
        """I + T for the published sharpness; its curvature is that of curves exp(t M)."""
        if variant.action == "scaling":
            return mlp_symmetry(self.model, "scaling")
        group = "first_order" if variant.quantity == "sharpness" else "gl"
        return mlp_symmetry(self.model, "pseudo_inverse", group=group, displacement=False)

    def search(self, variant: Variant, number: int) -> Search:
        """The search on batch ``number``, with random directions of its own."""
        size = self.sizes[variant.aim]
        if variant.quantity == "curvature" and variant.action == "published":
            return curvature_steps([CURVED], size, variant.direction, seed=number)
        if variant.quantity == "curvature":
            bent = partial(of_curvature, directions=self.directions, seed=number)
            return climb(bent, variant.direction, STEPS, SCALING_SIZE)
        sharp = partial(of_sharpness, directions=self.directions, seed=number)
        if variant.action == "published":
            sharp = partial(sharp, nonnegative=True)
            return gradient_steps(sharp, SHARE * size, variant.direction, STEPS, CAP / SHARE)
        return climb(sharp, variant.direction, STEPS, SCALING_SIZE)

    def move(self, copies: Copies, setting: int, variant: Variant, number: int, batch: tuple[Tensor, Tensor]) -> Jump:
        """Teleports one setting. A random one goes as far as the variant that it controls went on the same batch,
        which must have been moved before."""
        key = (f"{variant.action}, {variant.aim}", number)
        search = as_far(self._gone[key], number) if variant.random else self.search(variant, number)
        jump = copies.teleport(setting, self.symmetry(variant), search, *batch, "keep")
        if not variant.random:
            self._gone[key] = jump.size
        return jump
