"""How a run teleports, or what it does instead: the variants that the optimizer comparisons hold side by side.

    none                    the plain optimizer
    published               action (b) of Zhao et al. 2024 with I + T, plain gradient steps; state begun anew
    published, random       as far by the same action, in random directions; state begun anew
    scaling                 exact positive scaling, steps of fixed length; state moved along
    scaling, random         as far by the same action, in random directions; state moved along
    state reset             nothing moves, the state begins anew

Action (b) keeps the loss on a batch no wider than the layers only, so that its teleports drift; scalings keep it for
every input. The published code makes a new optimizer after every teleport, which is what begins the state anew.
"""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.lab.image_teleports import climb, of_gradient_norm, published_gradient_norm, randomized, stay
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Search
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.symmetry import Symmetry

PLAIN = "none"
NAMES = (PLAIN, "published", "published, random", "scaling", "scaling, random", "state reset")


@dataclass(frozen=True)
class Variant:
    """One way to teleport: by ``search(number of the teleport)`` along ``symmetry``; ``state`` says what becomes of the
    optimizer's."""

    symmetry: Symmetry
    search: Callable[[int], Search]
    state: str


def variants(model: MLP, published_size: float, scaling_size: float, steps: int = 10) -> dict[str, Variant]:
    """All variants but the plain one, by name. ``published_size`` is the step size of the published search,
    ``scaling_size`` the length of a step along the scalings; each takes ``steps`` steps."""
    wide = mlp_symmetry(model, "pseudo_inverse", group="first_order", displacement=False)
    exact = mlp_symmetry(model, "scaling")
    published = published_gradient_norm(published_size, steps=steps)
    scaling = climb(of_gradient_norm, steps=steps, size=scaling_size)
    return {
        "published": Variant(wide, lambda number: published, "reset"),
        "published, random": Variant(wide, lambda number: randomized(published, number), "reset"),
        "scaling": Variant(exact, lambda number: scaling, "transport"),
        "scaling, random": Variant(exact, lambda number: randomized(scaling, number), "transport"),
        "state reset": Variant(exact, lambda number: stay, "reset"),
    }
