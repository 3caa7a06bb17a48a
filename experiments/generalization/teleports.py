"""The teleports of generalization.py: published and exact ones, to lower and to raise sharpness and curvature.

    published    action (b) of Zhao et al. 2024 on batches of 2000, plain gradient steps, which does not keep the
                 loss on so wide a batch; its sharpness looks into the orthant of non-negative directions only, its
                 curvature is that of the second pair of layers along one random M, with entries in [0, 1)
    limited      the published search for curvature with steps no longer than 0.1, as the published step sizes,
                 chosen on one run, move others so far that the loss explodes
    scaling      exact positive scaling, steps of fixed length, sharpness on the whole sphere, curvature over all sites

and for each of them a control that goes as far in a random direction.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from experiments.lab.image_teleports import as_far, climb, curvature_steps, gradient_steps, of_curvature, of_sharpness
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble, Jump, Search
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.ascent import Direction

Action = Literal["published", "limited", "scaling"]
Quantity = Literal["sharpness", "curvature"]

PLAIN = "none"
STEPS, CAP, SHARE = 10, 2.0, 0.9
"""Steps per batch; the mean perturbed loss above which the published search stops; and the share of the mean that it
takes for the mean, as it divides the sum over nine scales by ten."""

PUBLISHED_BATCHES = {"sharpness lower": 10, "sharpness raise": 2, "curvature lower": 5, "curvature raise": 10}
LIMIT = 0.1
"""The length in the Lie algebra of a step of limited size."""

SCALING_BATCHES, SCALING_SIZE, SCALING_FACTOR = 2, 0.05, 2
"""Batches and the length of a step along the scalings, and how many times more directions these searches look in."""

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
        return SCALING_BATCHES if self.action == "scaling" else PUBLISHED_BATCHES[self.aim]


PUBLISHED = (
    Variant("published", "sharpness", "lower"),
    Variant("published", "sharpness", "raise"),
    Variant("published", "curvature", "lower"),
    Variant("published", "curvature", "raise"),
)
LIMITED = (
    Variant("limited", "curvature", "lower"),
    Variant("limited", "curvature", "raise"),
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
        if variant.action == "scaling":
            make = of_sharpness if variant.quantity == "sharpness" else of_curvature
            made = partial(make, directions=SCALING_FACTOR * self.directions, seed=number)
            return climb(made, variant.direction, STEPS, SCALING_SIZE)
        if variant.quantity == "curvature":
            limit = LIMIT if variant.action == "limited" else torch.inf
            return curvature_steps([CURVED], size, variant.direction, number, limit)
        sharp = partial(of_sharpness, directions=self.directions, seed=number, nonnegative=True)
        return gradient_steps(sharp, SHARE * size, variant.direction, STEPS, CAP / SHARE)

    def move(self, copies: Ensemble, setting: int, variant: Variant, number: int, batch: tuple[Tensor, Tensor]) -> Jump:
        """Teleports one setting. A random one goes as far as the variant that it controls went on the same batch,
        which must have been moved before."""
        key = (f"{variant.action}, {variant.aim}", number)
        search = as_far(self._gone[key], number) if variant.random else self.search(variant, number)
        jump = copies.teleport(setting, self.symmetry(variant), search, *batch, "keep")
        if not variant.random:
            self._gone[key] = jump.size
        return jump
