"""Everything that is pinned, by name: what the rules of the package do, and a small run of each experiment's core."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from pinned import images, problems, theory
from pinned.rules import RULES, steps_of
from pinned.store import Values

CASES: dict[str, Callable[[], Values]] = {
    **{f"rule_{name}": partial(steps_of, name) for name in RULES},
    "image_training": images.training,
    "image_teleports": images.teleports,
    "image_probes": images.probes,
    "correlations": images.correlations,
    "generalization": images.generalization,
    "optimizers": images.tuning,
    "factor_sweeps": problems.sweeps,
    "learned_gauges": problems.gauges,
    "held_out_tuning": problems.held_out,
    "held_out_comparisons": problems.comparisons,
    "maml": problems.maml,
    "overhead": problems.overhead,
    "theory": theory.statements,
    "level_sets": theory.level_sets,
    "displacement": theory.displacements,
}


@contextmanager
def double() -> Iterator[None]:
    """What experiments make without a dtype is float64 inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def run(name: str) -> Values:
    with double():
        return CASES[name]()
