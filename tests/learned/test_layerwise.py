"""Learned step lengths: what they are before training."""

import math

import laws
import pytest
import torch

from meta_teleport.learned.layerwise import Layerwise
from meta_teleport.learned.rule import Observation
from meta_teleport.params import Params
from meta_teleport.symmetry.symmetry import Symmetry


@pytest.mark.parametrize("start", [0.0, -2.0, -30.0])
def test_every_parameter_is_to_remove_the_same_part_of_the_loss(start: float, generator: torch.Generator) -> None:
    def drawn() -> Params:
        shapes = {"v": (4, 3), "b": (4,), "u": (2, 4)}
        return {n: torch.randn(5, *s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}

    rule = Layerwise("polyak", start=start).double()
    loss = torch.rand(5, generator=generator, dtype=torch.float64)
    seen = Observation(drawn(), drawn(), loss, torch.zeros(5, dtype=torch.long), symmetry=Symmetry(()))
    update = rule(seen, rule.init(seen.params, seen.symmetry))[0].update
    part, other = (math.exp(a) / (1 + 3 * math.exp(a)) for a in (start, start + 0.1))
    for name, g in seen.gradients.items():
        removed = -(g * update[name]).flatten(1).sum(1)
        laws.assert_close(removed, 2 * part * loss, 1e-12)
        laws.must_fail(laws.assert_close, removed, 2 * other * loss, 1e-3)
