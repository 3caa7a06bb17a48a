"""Families of one's own: what their losses do not read, symmetries as they are found, losses that cannot be used."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from own_families import FOUND, Own
from torch import Tensor

import meta_teleport as mt
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.loop import train
from meta_teleport.rules.rule import Rule, initialized, shapes_of
from meta_teleport.symmetry.groups import Permutation

SMALL = TrainingConfig(meta_steps=2, tasks=4, window=2, horizon=4, pairs=2)
RULES: dict[str, Callable[..., Rule]] = {
    "equivariant": lambda shapes: mt.Equivariant(hidden_size=4, horizon=4),
    "steepest": lambda shapes: mt.Equivariant("muon", ["balance", "axes", "steepest"], 4, 4, averaging=0.5),
    "coordinatewise": lambda shapes: mt.Coordinatewise(4, horizon=4),
    "layerwise": lambda shapes: mt.Layerwise(hidden_size=4, horizon=4),
    "lstm": lambda shapes: mt.LSTMUpdateTele(shapes, 4),
    "lstm-lr": lambda shapes: mt.LSTMLrTele(shapes, 4),
}
ESTIMATORS = [{}, {"second_order": True}, {"estimator": "es"}, {"estimator": "pes"}]


def rule_for(family: Own, name: str) -> Rule:
    tasks = family.sample(1, torch.Generator().manual_seed(0))
    with initialized(0):
        return RULES[name](shapes_of(tasks.params, tasks.symmetry))


@pytest.mark.parametrize("options", ESTIMATORS, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_a_parameter_that_the_loss_does_not_read_and_permutations_that_were_found(
    name: str, options: dict[str, Any]
) -> None:
    assert any(isinstance(site.group, Permutation) for site in FOUND.sites)
    family = Own(unread=True)
    summary = train(rule_for(family, name), family, replace(SMALL, **options))
    assert summary.finished and summary.failed == 0


def test_evaluation_with_such_a_parameter_and_such_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meta_teleport.evaluation.tuning.TASKS", 4)
    family = Own(unread=True)
    found = mt.evaluate(rule_for(family, "equivariant"), family, horizon=2, tasks=3, steps=2)
    assert {"equivariant/random", "gd+ascent", "adam+random"} <= set(found.methods)
    assert found.measurements["equivariant/random"].teleports == found.measurements["gd+ascent"].teleports == 2
    assert max(measured.failed for measured in found.measurements.values()) == 0


@pytest.mark.parametrize("shown", [Tensor.detach, torch.zeros_like], ids=["detached", "constant"])
def test_a_loss_that_depends_on_no_parameter(shown: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(mt.UserError, match=r"the loss depends on no parameter: compute it from those it is given"):
        train(rule_for(Own(), "coordinatewise"), Own(shown=shown), SMALL)


def test_a_loss_of_the_parameters_of_the_module_itself() -> None:
    other = torch.ones(1, requires_grad=True)
    with pytest.raises(mt.UserError, match="the loss depends on no parameter"):
        train(rule_for(Own(), "coordinatewise"), Own(shown=lambda losses: losses.detach() * other), SMALL)


def test_meta_parameters_without_influence() -> None:
    training = replace(SMALL, window=1, losses_before=True)
    with pytest.raises(mt.UserError, match="no meta-parameter of Coordinatewise has any influence on its losses"):
        train(rule_for(Own(), "coordinatewise"), Own(), training)
