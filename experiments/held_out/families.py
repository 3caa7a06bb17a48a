"""What held_out.py measures: the families, their members at sizes seen and not seen in meta-training, and how far.

============  ==========================================================================================================
f1            the paper's problems: uniform entries, n = d = k
f2            interpolating regression, n <= k: Gaussian data, pre-activations of both signs, depth 2 to 6
f2-large      regression with n = 2 d and 8 d points in mini-batches, noisy labels (positive scalings)
f3            low-rank factorisation: noiseless, noisy, missing entries, condition 1 to 1e4; deep linear networks
f3-noiseless  the same without noise and mini-batches, condition 1 to 1e4
f4            two-dimensional functions
f5            digits in mini-batches
f5-mnist      digits, MNIST and Fashion-MNIST in mini-batches (downloaded to data/)
f6            adapters and attention pairs of a small transformer
============  ==========================================================================================================
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from experiments.held_out.members import Amount, Member, Setting, count_for, single
from meta_teleport.tasks.adaptation import Adapters, AttentionPairs
from meta_teleport.tasks.classification import Classification
from meta_teleport.tasks.factorization import Factorization
from meta_teleport.tasks.family import TaskFamily
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.linear import DeepLinear
from meta_teleport.tasks.regression import Regression


def regression(label: str, seen: bool = False, methods: Amount = "rules", **arguments: Any) -> Member:
    """A size of the regression family; all methods at a size seen run for ten horizons."""
    width = max(arguments["width"], arguments.get("inputs", 0))
    multiples = (1,) if methods == "rules" else (1, 3, 10) if seen else (1, 3)
    return Member(label, lambda: Regression(**arguments), count_for(width), seen, methods, multiples)


PAPER = regression("width 20", True, "all", width=20)
GAUSSIAN = regression("width 16", True, "all", width=16, data="gaussian")
DEEP = regression("width 20, depth 4", width=20, depth=4, data="gaussian")
UNSEEN = regression("width 40, depth 2", methods="all", width=40, data="gaussian")

INTERPOLATING = (
    lambda: Regression(width=8),
    lambda: Regression(width=16, data="gaussian"),
    lambda: Regression(width=8, depth=4, data="gaussian"),
    lambda: Regression(width=20),
    lambda: Regression(width=16, inputs=24, points=12, data="gaussian"),
    lambda: Regression(width=12, depth=3),
    lambda: Regression(width=20, inputs=10, outputs=3, points=10, data="gaussian"),
    lambda: Regression(width=8, depth=6, data="gaussian"),
)
F1 = Setting(
    "F1: the paper's problems",
    INTERPOLATING,
    (
        PAPER,
        regression("width 10", methods="all", width=10),
        regression("width 40", methods="all", width=40),
        regression("width 8", True, width=8),
        regression("width 64", width=64),
        *(regression(f"width {width}", width=width) for width in (96, 128, 192, 256)),
        regression("width 12, depth 3", True, width=12, depth=3),
        *(regression(f"width 20, depth {depth}", width=20, depth=depth) for depth in (3, 4, 5, 6)),
        single(PAPER),
        single(regression("width 40", width=40)),
        single(regression("width 128", width=128)),
        single(regression("width 20, depth 3", width=20, depth=3)),
    ),
    horizon=20,
    backtracking=True,
)
F2 = Setting(
    "F2: interpolating regression, n <= k",
    INTERPOLATING,
    (
        GAUSSIAN,
        UNSEEN,
        regression("24-16-16, 12 points", True, width=16, inputs=24, points=12, outputs=16, data="gaussian"),
        regression("20-40-5, 20 points", width=40, inputs=20, outputs=5, data="gaussian"),
        *(regression(f"width {width}", width=width, data="gaussian") for width in (8, 10, 64, 96, 128, 192, 256)),
        regression("width 8, depth 4", True, width=8, depth=4, data="gaussian"),
        *(regression(f"width 20, depth {depth}", width=20, depth=depth, data="gaussian") for depth in (3, 4, 5, 6)),
        single(GAUSSIAN),
        single(UNSEEN),
        single(regression("width 128", width=128, data="gaussian")),
        single(DEEP),
    ),
    horizon=20,
    backtracking=True,
)


def large(width: int, times: int, **arguments: Any) -> Regression:
    """Regression on ``times`` width points in mini-batches of ``width``, with a teacher's labels and noise."""
    given = {"labels": "teacher", "noise": 0.1, "data": "gaussian", "action": "scaling", **arguments}
    return Regression(width=width, points=times * width, batch=width, **given)


def stochastic(
    label: str, make: Callable[[], TaskFamily], seen: bool = False, count: int = 64, longest: int = 3
) -> Member:
    """A member in float32; at a size seen its methods run for up to ``longest`` horizons."""
    multiples = tuple(m for m in (1, 3, 10) if m <= longest) if seen else (1,)
    return Member(label, make, count, seen, "all", multiples, torch.float32)


F2_LARGE = Setting(
    "F2: regression with n = 2 d and 8 d, mini-batches, label noise",
    (lambda: large(16, 2), lambda: large(16, 8), lambda: large(16, 8, depth=3), lambda: large(8, 8, depth=5)),
    (
        stochastic("width 16, n = 8 d", lambda: large(16, 8), True),
        stochastic("width 16, n = 2 d", lambda: large(16, 2), True),
        stochastic("width 40, n = 8 d", lambda: large(40, 8)),
        stochastic("width 40, n = 2 d", lambda: large(40, 2)),
        stochastic("width 16, depth 4, n = 8 d", lambda: large(16, 8, depth=4)),
    ),
    horizon=240,
    stochastic=True,
    dtype=torch.float32,
)
SMALL_FACTORS: dict[str, Any] = {"rank": 4, "inputs": 24, "outputs": 24, "batch": 16}
F3 = Setting(
    "F3: low-rank factorisation and deep linear networks",
    (
        lambda: Factorization(noise=0.1, **SMALL_FACTORS),
        lambda: Factorization(**SMALL_FACTORS),
        lambda: Factorization(missing=0.5, **SMALL_FACTORS),
        lambda: DeepLinear(width=12, inputs=16, outputs=16, batch=16, noise=0.05),
    ),
    (
        stochastic("noisy, rank 4, 24 x 24", lambda: Factorization(noise=0.1, **SMALL_FACTORS), True, 32, 10),
        stochastic("noisy", lambda: Factorization(noise=0.1), False, 32),
        stochastic("noiseless, mini-batches", lambda: Factorization(), False, 32),
        stochastic("noisy, a third of the entries missing", lambda: Factorization(noise=0.1, missing=1 / 3), False, 32),
        stochastic("noisy, rank 12, 96 x 96", lambda: Factorization(12, 96, 96, noise=0.1), False, 32),
        *(
            stochastic(f"noisy, condition {c:g}", partial(Factorization, condition=c, noise=0.1), False, 32)
            for c in (1.0, 1e4)
        ),
        stochastic("deep linear, width 16, depth 3, noisy", lambda: DeepLinear(noise=0.1), False, 32),
    ),
    horizon=300,
    stochastic=True,
    dtype=torch.float32,
)
CONDITIONS = (1.0, 10.0, 100.0, 1e3, 1e4)
EXACT: dict[str, Any] = {"anisotropy": 1.0, "batch": None}


def exact(rank: int, width: int, condition: float, seen: bool = False, methods: Amount = "rules") -> Member:
    """Plain matrix factorisation."""
    make = partial(Factorization, rank, width, width, condition, **EXACT)
    return Member(f"rank {rank}, {width} x {width}, condition {condition:g}", make, 64, seen, methods)


F3_NOISELESS = Setting(
    "F3: plain matrix factorisation",
    tuple(partial(Factorization, 4, 24, 24, condition, **EXACT) for condition in (1.0, 100.0, 1e4)),
    (
        *(exact(4, 24, c, c in (1.0, 100.0, 1e4), "all" if c in (1.0, 1e4) else "rules") for c in CONDITIONS),
        *(exact(8, 64, c) for c in CONDITIONS),
        *(exact(12, 96, c) for c in CONDITIONS),
    ),
    horizon=12,
)


def function(name: str, seen: bool = True) -> Member:
    """A two-dimensional function."""
    return Member(name, partial(Functions, name), 256, seen, "all", (1, 3, 10))


F4 = Setting(
    "F4: two-dimensional functions",
    tuple(partial(Functions, name) for name in ("ellipse", "rosenbrock", "booth")),
    (
        *(function(name, seen) for name, seen in (("rosenbrock", True), ("booth", True), ("ellipse", True))),
        function("random", False),
    ),
    horizon=30,
)
DIGITS = (
    stochastic("32 units", Classification, True, 32),
    stochastic("64 units", partial(Classification, hidden=(64,)), False, 32),
    stochastic("32-32 units", partial(Classification, hidden=(32, 32)), False, 32),
)
F5 = Setting(
    "F5: digits in mini-batches",
    (Classification,),
    DIGITS,
    horizon=240,
    stochastic=True,
    dtype=torch.float32,
)
MNIST = partial(Classification, "mnist", download=True)
FASHION_MNIST = partial(Classification, "fashion_mnist", download=True)
F5_MNIST = replace(
    F5,
    title="F5: digits, MNIST and Fashion-MNIST in mini-batches",
    training=(
        Classification,
        partial(MNIST, hidden=(16,)),
        partial(Classification, points=200),
        partial(MNIST, hidden=(16, 16)),
    ),
    members=(
        *DIGITS,
        stochastic("MNIST, 32 units", MNIST, False, 16),
        stochastic("Fashion-MNIST, 64-64 units", partial(FASHION_MNIST, hidden=(64, 64)), False, 16),
    ),
)
SMALL_MODELS: dict[str, Any] = {"width": 32, "layers": 1, "points": 2400, "pretraining_steps": 300}
F6 = Setting(
    "F6: adapters and attention pairs of a small transformer",
    (
        lambda: Adapters(rank=4, pool=4, **SMALL_MODELS),
        lambda: Adapters(rank=4, pool=4, **{**SMALL_MODELS, "layers": 2}),
        lambda: AttentionPairs(pool=4, **SMALL_MODELS),
    ),
    (
        stochastic("adapters of rank 8, width 64", Adapters, False, 16),
        stochastic("adapters of rank 4, width 32, 1 layer", lambda: Adapters(rank=4, **SMALL_MODELS), True, 32),
        stochastic("attention pairs, width 64, 1 layer", lambda: AttentionPairs(layers=1), False, 16),
    ),
    horizon=300,
    stochastic=True,
    measured=10,
    dtype=torch.float32,
)
FAMILIES = {
    "f1": F1,
    "f2": F2,
    "f2-large": F2_LARGE,
    "f3": F3,
    "f3-noiseless": F3_NOISELESS,
    "f4": F4,
    "f5": F5,
    "f5-mnist": F5_MNIST,
    "f6": F6,
}
