"""Learned step lengths: what they are before training."""

import math

import laws
import pytest
import torch

from meta_teleport.learned.layerwise import Layerwise
from meta_teleport.learned.lstm import LSTMUpdateTele
from meta_teleport.learned.rule import Observation, shapes_of
from meta_teleport.tasks.regression import Regression


@pytest.mark.parametrize("start", [0.0, -2.0, -30.0])
def test_parts_of_the_loss_to_remove_are_equal_but_for_the_start_where_a_site_produces(
    start: float, generator: torch.Generator
) -> None:
    tasks = Regression(width=4, depth=3, data="gaussian").sample(5, generator, dtype=torch.float64)
    rule = Layerwise("polyak", start=start).double()
    loss = torch.rand(5, generator=generator, dtype=torch.float64)
    gradients = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in tasks.params.items()}
    seen = Observation(tasks.params, gradients, loss, torch.zeros(5, dtype=torch.long), symmetry=tasks.symmetry)
    update = rule(seen, rule.init(seen.params, seen.symmetry))[0].update

    def parts(start: float) -> dict[str, float]:
        lower, rest = math.exp(start), 1.0
        found = {"layers.0.weight": lower, "layers.1.weight": lower, "layers.2.weight": rest}
        return {name: part / (rest + sum(found.values())) for name, part in found.items()}

    for name, g in gradients.items():
        removed = -(g * update[name]).flatten(1).sum(1)
        laws.assert_close(removed, 2 * parts(start)[name] * loss, 1e-12)
        if start > -30:
            laws.must_fail(laws.assert_close, removed, 2 * parts(start + 0.1)[name] * loss, 1e-3)


def test_a_gradient_that_is_zero_gives_no_update(generator: torch.Generator) -> None:
    tasks = Regression(width=4, data="gaussian").sample(2, generator)
    gradients = {name: torch.zeros_like(p) for name, p in tasks.params.items()}
    for rule in (Layerwise("polyak"), LSTMUpdateTele(shapes_of(tasks.params, tasks.symmetry))):
        seen = Observation(tasks.params, gradients, torch.full((2,), 75.0), torch.zeros(2, dtype=torch.long))
        seen = seen._replace(symmetry=tasks.symmetry)
        update = rule(seen, rule.init(seen.params, seen.symmetry))[0].update
        assert all(bool(torch.isfinite(f).all()) for f in update.values())
