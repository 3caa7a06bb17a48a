"""What stands behind a test loss before and after teleports: training loss, test loss, sharpness, curvature of copies.

Sharpness and loss are taken on the last training images, which no teleport sees. What sharpness adds to the loss on the
same images is *sharpness - loss*: teleports that do not keep the loss move the former even where the latter stays.
"""

import torch
from sharpness_and_curvature import Measure, curvature, gaussian, loss, sharpness
from torch import Tensor

from meta_teleport.models import MLP
from meta_teleport.optimizers.copies import Copies
from meta_teleport.symmetry.symmetry import mlp_symmetry
from meta_teleport.tasks.images import Images
from meta_teleport.teleportation.objectives import SEARCH_SCALES

SPHERE, ORTHANT = "sharpness - loss", "sharpness - loss, published directions"
SCALING, PUBLISHED = "curvature of scalings", "curvature of action (b)"
MEASURES = ("training loss", "test loss", SPHERE, ORTHANT, SCALING, PUBLISHED)
SEED = 10_000
"""First seed of the directions, none of which a search follows."""


@torch.no_grad()
def probe(copies: Copies, images: Images, size: int, directions: int) -> dict[str, Tensor]:
    """All ``MEASURES`` by name, ``(copies,)`` each: means over ``directions`` directions, each with a batch of ``size``
    images of its own."""
    model = copies.model
    assert isinstance(model, MLP)
    measures: dict[str, Measure] = {
        "training loss": loss(copies),
        SPHERE: sharpness(copies, SEARCH_SCALES, nonnegative=False),
        ORTHANT: sharpness(copies, SEARCH_SCALES, nonnegative=True),
        SCALING: curvature(copies, mlp_symmetry(model, "scaling"), gaussian),
        PUBLISHED: curvature(copies, mlp_symmetry(model, "pseudo_inverse", displacement=False), gaussian),
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
