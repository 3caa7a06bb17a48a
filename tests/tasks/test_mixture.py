"""Families of several sizes and kinds: what they are made of, whose turn it is, resuming, refusals."""

import json
from pathlib import Path
from typing import Any

import laws
import pytest
import torch
from torch import Tensor, nn

from meta_teleport.cli.main import main
from meta_teleport.errors import UserError
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.loop import train
from meta_teleport.meta.trainer import Trainer
from meta_teleport.params import Params, per_task
from meta_teleport.registry import construct
from meta_teleport.rules.classical import NoState
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.runs.run import Run
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import TaskFamily
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.mixture import Mixture
from meta_teleport.tasks.regression import Regression

SPECS: list[Any] = [{"class_path": "Regression", "init_args": {"width": 3}}, Functions("booth"), Regression(width=5)]
ALONE = Regression(width=3)
SMALL = TrainingConfig(meta_steps=12, tasks=4, window=2, horizon=6, save_every=1, log_every=1)


class LearnedStep(Rule):
    """Gradient descent with a learned step, on networks of any size."""

    def __init__(self, log_step: float = -9.0) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.tensor(log_step))

    def init(self, params: Params, symmetry: Symmetry) -> NoState:
        return NoState()

    def forward(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
        step = -self.log_step.exp()
        return Proposal({name: per_task(step, g) * g for name, g in observation.gradients.items()}), state


def run_in(folder: Path) -> Run:
    config = {"task": {}, "rule": {"class_path": "x", "init_args": {}}, "training": {}, "seed": 0, "dtype": "float32"}
    return Run.create(folder, config)


def turns(training: TrainingConfig, mixture: TaskFamily) -> list[int]:
    trainer, seen = Trainer(LearnedStep(), mixture, training, seed=0), []
    for _ in range(training.meta_steps):
        seen.append(trainer.pools.index(trainer.pool))
        before = [pool.carry.step.clone() for pool in trainer.pools]
        trainer.step()
        moved = [not torch.equal(b, p.carry.step) for b, p in zip(before, trainer.pools, strict=True)]
        assert moved == [i == seen[-1] for i in range(len(moved))]
    return seen


def test_members_of_members_count_one_by_one() -> None:
    members = Mixture([Mixture(SPECS[:2]), SPECS[2]]).members
    assert [type(member) for member in members] == [Regression, Functions, Regression]
    assert [member.points for member in members if isinstance(member, Regression)] == [3, 5]
    assert ALONE.members == (ALONE,)


def test_a_spec_of_specs_is_a_mixture() -> None:
    spec = {"class_path": "Mixture", "init_args": {"families": [{"class_path": "Functions"}, SPECS[0]]}}
    assert [type(member) for member in construct(spec, TaskFamily).members] == [Functions, Regression]


def test_members_take_turns() -> None:
    assert turns(SMALL, Mixture(SPECS)) == 4 * [0, 1, 2]
    assert turns(SMALL, ALONE) == [0] * 12


def test_a_mixture_of_one_is_that_family() -> None:
    rules = [LearnedStep(), LearnedStep()]
    for rule, family in zip(rules, (ALONE, Mixture([ALONE])), strict=True):
        train(rule, family, SMALL)
    laws.same_bits(rules[0].state_dict(), rules[1].state_dict())
    other = LearnedStep()
    train(other, Mixture(SPECS), SMALL)
    laws.must_fail(laws.same_bits, rules[0].state_dict(), other.state_dict())


def test_a_mixture_trains_on_every_member() -> None:
    rule, mixture = LearnedStep(), Mixture(SPECS[::2])
    first, seen = Trainer(rule, mixture, SMALL, seed=0), []
    for _ in range(2):
        gradient: Tensor = first.step().gradient["log_step"]
        seen.append(float(gradient))
    assert all(value < 0 for value in seen) and seen[0] != seen[1]


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    training, mixture = SMALL, Mixture(SPECS)
    whole, parts = LearnedStep(), LearnedStep()
    next(parts.parameters()).data.fill_(-3.0)  # which the state replaces
    train(whole, mixture, training, run=run_in(tmp_path / "whole"))
    run, stops = run_in(tmp_path / "parts"), iter([False] * 7 + [True])
    assert not train(LearnedStep(), mixture, training, run=run, should_stop=lambda: next(stops)).finished
    assert train(parts, mixture, training, run=run, resume=True).finished
    laws.same_bits(whole.state_dict(), parts.state_dict())
    rows = [Run.open(tmp_path / name).metrics() for name in ("whole", "parts")]
    for one, other in zip(*rows, strict=True):
        assert one.keys() == other.keys() and {"meta_loss", "meta_loss/0", "meta_loss/2"} <= one.keys()
        assert all(one[key] == other[key] for key in one if key != "task_steps_per_second")
    with pytest.raises(UserError, match="another rule, family, seed or version"):
        train(LearnedStep(), Mixture(SPECS[::-1]), training, run=run, resume=True)


def test_refusals() -> None:
    with pytest.raises(UserError, match="a Mixture of no families has no tasks: give families"):
        Mixture([])
    with pytest.raises(UserError, match="there is no TaskFamily 'Nope'"):
        Mixture([{"class_path": "Nope"}])
    with pytest.raises(UserError, match="'Regression' names no TaskFamily: give class_path and init_args"):
        Mixture(["Regression"])
    with pytest.raises(UserError, match=r"a Mixture \(Regression, Functions, Regression\) has no batch of one shape"):
        Mixture(SPECS).sample(1, torch.Generator())


@pytest.mark.parametrize("widths", [(3, 3), (3, 4)])
def test_the_command_line_trains_on_members_that_fit_the_rule(
    widths: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    families = [{"class_path": "Regression", "init_args": {"width": width}} for width in widths]
    config = {
        "task": {"class_path": "Mixture", "init_args": {"families": families}},
        "rule": {"class_path": "LSTMUpdate", "init_args": {"hidden_size": 4}},
        "training": {"meta_steps": 2, "tasks": 2, "window": 2, "horizon": 2},
    }
    (tmp_path / "mixture.yaml").write_text(json.dumps(config))
    code = main(["train", "--out", str(out), "--config", str(tmp_path / "mixture.yaml"), "--device", "cpu"])
    if widths[0] != widths[1]:
        assert code == 2 and not out.exists()
        message = "LSTMUpdate is built for networks of one shape and the members of --task have several"
        assert message in capsys.readouterr().err
        return
    assert code == 0
    assert Run.open(out).config["task"]["init_args"]["families"] == families
    assert main(["evaluate", str(out), "--tasks", "2", "--steps", "2", "--device", "cpu"]) == 0
    assert "evaluated on the first of its families; the others by --task" in capsys.readouterr().err
    assert len(list(out.glob("evaluation-regression-seed0-*.json"))) == 1
