"""Families of one's own: what their losses do not read, symmetries as they are found, losses that cannot be used."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from own_families import FOUND, Own, OwnTasks
from torch import Tensor

import meta_teleport as mt
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.loop import train
from meta_teleport.meta.trainer import Trainer
from meta_teleport.params import Params
from meta_teleport.rules.rule import Rule, initialized, shapes_of
from meta_teleport.rules.wrappers import WithoutElements
from meta_teleport.runs.run import Run
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


class Broken(Own):
    """Losses that are no numbers."""

    def __init__(self) -> None:
        super().__init__(shown=lambda losses: losses * torch.nan)


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


@pytest.mark.parametrize("name", RULES)
def test_negative_losses_are_refused_by_every_rule_that_reads_logarithms_and_by_log_objectives(name: str) -> None:
    family, rule = Own(shown=lambda losses: losses - 5), rule_for(Own(), name)
    for options in ({}, {"estimator": "es"}, {"estimator": "pes"}):
        with pytest.raises(mt.UserError, match=r"take.? losses that are not negative, and one is -"):
            train(rule, family, replace(SMALL, **options))
    with pytest.raises(mt.UserError, match="log objectives and penalties take losses that are not negative"):
        train(rule_for(Own(), "coordinatewise"), family, replace(SMALL, objective="sum", increase_penalty=1.0))
    of_sums = replace(SMALL, objective="sum")
    if not rule.nonnegative_losses:
        assert train(rule, family, of_sums).meta_loss < -5
        return
    with pytest.raises(mt.UserError, match=f"{type(rule).__name__} takes losses that are not negative, and one is -"):
        train(rule, family, of_sums)


def test_which_rules_take_the_least_loss_to_be_zero() -> None:
    shapes = shapes_of(Own().sample(1, torch.Generator()).params, FOUND)
    raw = mt.LSTMUpdate(shapes, features="raw", gradient_term=False)
    plain = mt.Equivariant("gd", bases=[])
    assert [r.nonnegative_losses for r in (raw, plain, mt.Coordinatewise())] == [False] * 3
    read = [mt.LSTMUpdate(shapes), mt.LSTMUpdate(shapes, features="raw"), mt.LSTMUpdate(shapes, gradient_term=False)]
    read += [mt.Layerwise(), mt.Equivariant("gd"), mt.Equivariant(bases=[]), mt.Equivariant().over(plain)]
    assert all(r.nonnegative_losses for r in (*read, WithoutElements(mt.Layerwise())))


def test_a_loss_that_becomes_negative_on_the_way() -> None:
    """It begins above zero: 1 / (1 + e^-x), less a little, falls below as the rule descends."""
    family = Own(shown=lambda losses: losses - 0.5 * losses.detach() - 0.5)
    with pytest.raises(mt.UserError, match="Layerwise takes losses that are not negative"):
        train(rule_for(Own(), "layerwise"), family, replace(SMALL, meta_steps=20))


def test_losses_below_zero_by_rounding_count_as_zero() -> None:
    family = Own(shown=lambda losses: torch.where(losses > 0.5, losses, losses - losses.detach() - 1e-9))
    for name in RULES:
        assert train(rule_for(Own(), name), family, SMALL).failed == 0


def test_an_evaluation_refuses_negative_losses_and_families_that_cannot_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meta_teleport.evaluation.tuning.TASKS", 4)
    with pytest.raises(mt.UserError, match="an evaluation takes losses that are not negative, and one is -"):
        mt.evaluate(None, Own(shown=lambda losses: losses - 5), horizon=2, tasks=3, steps=2)
    with pytest.raises(mt.UserError, match="no held-out task has a finite loss at its start"):
        mt.evaluate(None, Own(shown=lambda losses: losses * torch.nan), horizon=2, tasks=3, steps=2)


@pytest.mark.parametrize("options", ESTIMATORS, ids=str)
@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
def test_a_run_whose_tasks_all_fail_ends_with_nulls_in_its_log(
    factor: float, options: dict[str, Any], tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "run", {})
    rule = rule_for(Own(), "layerwise")
    before = [p.clone() for p in rule.parameters()]
    with pytest.raises(mt.UserError, match="all 4 tasks of Own failed in 3 windows in a row"):
        train(rule, Own(shown=lambda losses: losses * factor), replace(SMALL, meta_steps=9, **options), run=run)
    run.close()
    rows = [(row["meta_step"], row["meta_loss"], row["failed"]) for row in run.metrics()]
    assert rows == [(1, None, 4), (2, None, 8), (3, None, 12)]
    assert all(torch.equal(a, b) for a, b in zip(before, rule.parameters(), strict=True))


@dataclass(frozen=True)
class _PartlyBroken(OwnTasks):
    factor: float = torch.nan

    @property
    def broken(self) -> Tensor:
        return self.data["y"][:, 0, 0] > 0

    def loss(self, params: Params, step: Tensor) -> Tensor:
        return super().loss(params, step) * torch.where(self.broken, self.factor, 1.0)


class PartlyBroken(Own):
    """About half of the tasks have no finite loss."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def sample(self, *arguments: Any, **named: Any) -> _PartlyBroken:
        drawn = super().sample(*arguments, **named)
        return _PartlyBroken(drawn.params, drawn.data, drawn.shown, self.factor)


@pytest.mark.parametrize("options", [*ESTIMATORS, {"increase_penalty": 1.0}], ids=str)
@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
def test_tasks_without_a_finite_first_loss_are_frozen_counted_and_no_part_of_the_gradient(
    factor: float, options: dict[str, Any]
) -> None:
    family, own = PartlyBroken(factor), rule_for(Own(), "layerwise")
    trainer = Trainer(own, family, replace(SMALL, tasks=8, meta_steps=9, **options), seed=0)
    counted = 0
    for _ in range(4):
        estimate, tasks = trainer.step(), trainer.pool.tasks
        assert isinstance(tasks, _PartlyBroken)
        counted += int(tasks.broken.sum())
        assert estimate.failed == 0 and torch.equal(estimate.carry.alive, ~tasks.broken)
        carry = estimate.carry.plus if hasattr(estimate.carry, "plus") else estimate.carry
        assert all(torch.equal(p[tasks.broken], tasks.params[name][tasks.broken]) for name, p in carry.params.items())
        assert bool(estimate.meta_loss.isfinite()) and all(bool(g.isfinite().all()) for g in estimate.gradient.values())
        assert any(bool(g.any()) for g in estimate.gradient.values())
    assert trainer.failed == counted > 4


def test_one_member_that_always_fails_ends_the_run_of_a_mixture() -> None:
    mixture = mt.Mixture([Own(), Broken()])
    with pytest.raises(mt.UserError, match="all 4 tasks of Broken failed in 3 windows in a row"):
        train(rule_for(Own(), "layerwise"), mixture, replace(SMALL, meta_steps=9))
    assert train(rule_for(Own(), "layerwise"), mixture, replace(SMALL, meta_steps=5)).finished
