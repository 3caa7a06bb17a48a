"""What stands behind a test loss before and after teleports: training loss, test loss, sharpness, curvature of copies.

Sharpness and loss are taken on the last training images, which no teleport sees. What sharpness adds to the loss on the
same images is *sharpness - loss*: teleports that do not keep the loss move the former even where the latter stays.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.params import detach
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.images import Images
from meta_teleport.teleportation.objectives import SEARCH_SCALES, Curvature, Sharpness

SPHERE, ORTHANT = "sharpness - loss", "sharpness - loss, published directions"
SCALING, PUBLISHED = "curvature of scalings", "curvature of action (b)"
MEASURES = ("training loss", "test loss", SPHERE, ORTHANT, SCALING, PUBLISHED)
SEED = 10_000
"""First seed of the directions, none of which a search follows."""

CHUNK = 20
"""Ensemble whose curvature is computed at a time."""

Measure = Callable[[int, Tensor, Tensor], Tensor]
"""From a seed, inputs ``(n, d)`` and labels ``(n,)`` to one number per copy, ``(copies,)``."""


@torch.no_grad()
def probe(copies: Ensemble, images: Images, size: int, directions: int) -> dict[str, Tensor]:
    """All ``MEASURES`` by name, ``(copies,)`` each: means over ``directions`` directions, each with a batch of ``size``
    images of its own."""
    model = copies.model
    assert isinstance(model, MLP)
    measures: dict[str, Measure] = {
        "training loss": lambda seed, x, y: copies.losses(x[None], y[None]),
        SPHERE: _sharpness(copies, nonnegative=False),
        ORTHANT: _sharpness(copies, nonnegative=True),
        SCALING: _curvature(copies, mlp_symmetry(model, "scaling")),
        PUBLISHED: _curvature(copies, mlp_symmetry(model, "pseudo_inverse", displacement=False)),
    }
    last = len(images.x_train) // size
    found = {name: torch.zeros(copies.count, device=images.x_train.device) for name in measures}
    for number in range(directions):
        at = slice((last - 1 - number % last) * size, (last - number % last) * size)
        for name, measure in measures.items():
            found[name] += measure(SEED + number, images.x_train[at], images.y_train[at]) / directions
    for name in (SPHERE, ORTHANT):
        found[name] -= found["training loss"]
    found["test loss"] = copies.evaluate(images.x_test, images.y_test)[0]
    return {name: found[name].cpu() for name in MEASURES}


def _sharpness(copies: Ensemble, nonnegative: bool) -> Measure:
    params = detach(copies.params)

    def measure(seed: int, x: Tensor, y: Tensor) -> Tensor:
        phi = Sharpness(SEARCH_SCALES, directions=1, seed=seed, nonnegative=nonnegative)
        return phi(lambda moved: copies.losses(x[None], y[None], moved), params)

    return measure


def _curvature(copies: Ensemble, symmetry: Symmetry) -> Measure:
    params = detach(copies.params)

    def measure(seed: int, x: Tensor, y: Tensor) -> Tensor:
        psi = Curvature(symmetry, symmetry.prepare(x), directions=1, seed=seed)
        starts = range(0, copies.count, CHUNK)
        parts = [{name: p[start : start + CHUNK] for name, p in params.items()} for start in starts]
        return torch.cat([psi(lambda part: next(iter(part.values())), part) for part in parts])

    return measure
