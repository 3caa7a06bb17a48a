"""How the rules of held_out.py are made and meta-trained, family by family."""

from dataclasses import dataclass, field, replace
from typing import Any

from meta_teleport.equivariant.bases import EQUIVARIANT, GRAMS
from meta_teleport.meta.config import TrainingConfig

ALL = [*EQUIVARIANT, "axes"]
GAUGE = ["balance", "axes"]


@dataclass(frozen=True)
class Recipe:
    """Arguments of :class:`Equivariant`, and how it is trained. Both twins have the same but for their elements."""

    arguments: dict[str, Any]
    training: TrainingConfig = field(default_factory=TrainingConfig)


INTERPOLATING = Recipe(  # begins near the hand-written teleporter, with short steps of all layers but the last
    {
        "update": "polyak",
        "bases": ["activations"],
        "init_coefficients": {"activations": -1.0},
        "size": 8.0,
        "start": -3.0,
        "horizon": 20,
        "warmup_teleports": 3,
    },
    TrainingConfig(
        meta_steps=320,
        tasks=24,
        window=10,
        horizon=20,
        lr_update=1e-2,
        lr_element=1e-2,
        floor=1e-26,
        increase_penalty=10.0,
        clip=0.1,
        staggered=False,
    ),
)
FACTORS = Recipe(
    {"update": "adam", "bases": ALL, "horizon": 300, "every": 5, "averaging": 0.9, "size": 2.0, "start": -1.5},
    TrainingConfig(
        meta_steps=300,
        tasks=12,
        window=60,
        horizon=300,
        lr_update=5e-3,
        lr_element=5e-3,
        floor=1e-12,
        clip=0.3,
        second_order=True,
        errors=True,
    ),
)
SCALINGS = {**FACTORS.arguments, "horizon": 240, "every": 10, "bases": [*GRAMS, "symmetric"]}
CLASSIFIERS = {**SCALINGS, "update": "muon", "start": -2.5}
WHOLE_RUNS = replace(FACTORS.training, window=240, horizon=240, objective="end", clip=0.1)
TURNS = Recipe(
    {
        "update": "curvature",
        "bases": ["incoming", "outgoing"],
        "size": 30.0,
        "floor": 1e-12,
        "horizon": 12,
        "warmup_teleports": 1,
        "alternating": True,
    },
    TrainingConfig(
        meta_steps=150,
        tasks=8,
        window=6,
        horizon=12,
        lr_update=1e-2,
        lr_element=1e-2,
        floor=1e-20,
        increase_penalty=10.0,
        staggered=False,
    ),
)
PLANE = Recipe(  # begins just short of the steepest point: from no teleport at all half of the meta-seeds stay there
    {
        "update": "polyak",
        "bases": ["steepest"],
        "init_coefficients": {"steepest": 0.5},
        "size": 8.0,
        "horizon": 30,
        "every": 2,
        "teleport_only_steps": True,
        "backtracking": True,
    },
    TrainingConfig(
        meta_steps=120,
        tasks=32,
        window=10,
        horizon=30,
        lr_update=1e-2,
        lr_element=1e-2,
        floor=1e-26,
        increase_penalty=3.0,
        second_order=True,
    ),
)
RECIPES = {
    "f1": INTERPOLATING,
    "f2": INTERPOLATING,
    "f2-large": Recipe(  # a quarter of the horizon: through all of it meta-gradients explode
        {**SCALINGS, "update": "muon", "horizon": 60, "start": -1.5},
        replace(
            FACTORS.training,
            meta_steps=120,
            tasks=8,
            window=60,
            horizon=60,
            objective="end",
            lr_update=1e-2,
            lr_element=1e-3,
        ),
    ),
    "f3": FACTORS,
    "f3-noiseless": TURNS,
    "f4": PLANE,
    "f5": Recipe(CLASSIFIERS, replace(WHOLE_RUNS, meta_steps=32, tasks=10)),
    "f5-mnist": Recipe(CLASSIFIERS, replace(WHOLE_RUNS, meta_steps=96, tasks=6, lr_update=1e-2)),
    "f6": Recipe(
        {
            **FACTORS.arguments,
            "update": "muon",
            "start": -2.5,
            "bases": GAUGE,
            "init_coefficients": dict.fromkeys(GAUGE, 1.0),
        },
        replace(
            FACTORS.training,
            meta_steps=100,
            tasks=4,
            window=100,
            objective="end",
            lr_update=2e-2,
            lr_element=2e-3,
            errors=False,
        ),
    ),
}
