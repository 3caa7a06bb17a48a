"""A run goes on from its own state: that of another seed, rule, family or shape is refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import meta_teleport as mt
from meta_teleport.errors import UserError
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.loop import train
from meta_teleport.runs.checkpoint import load_tensors, save_tensors
from meta_teleport.runs.run import Run

SMALL = TrainingConfig(meta_steps=2, tasks=3, window=2, horizon=4)
FAMILY = mt.Regression(3)


def rule(**arguments: Any) -> mt.Rule:
    return mt.Equivariant(**{"hidden_size": 3, "horizon": 4, "bases": ["balance"], "update": "polyak", **arguments})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run.create(tmp_path_factory.mktemp("saved") / "run", {"task": {}})
    train(rule(), FAMILY, SMALL, seed=3, run=run)
    return run.state_path


def resume(folder: Path, made: mt.Rule, family: mt.TaskFamily = FAMILY, seed: int = 3) -> None:
    train(made, family, SMALL, seed=seed, run=Run(folder, {"task": {}}), resume=True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"seed": 4}, "its seed differs from the run's"),
        ({"made": rule(update="adam")}, "its rule differs"),
        ({"made": rule(size=2.0)}, "its rule differs"),  # the same tensors
        ({"made": mt.Coordinatewise(3, horizon=4)}, "its rule differs"),
        ({"family": mt.Regression(3, batch=2)}, "its families differs"),
        ({"family": mt.Mixture([FAMILY, FAMILY])}, "its families differs"),
    ],
)
def test_a_state_of_another_run_is_refused_and_the_run_stays_as_it_was(
    saved: Path, tmp_path: Path, arguments: dict[str, Any], text: str
) -> None:
    (tmp_path / "training.safetensors").write_bytes(saved.read_bytes())
    with pytest.raises(UserError, match=text) as caught:
        resume(tmp_path, **{"made": rule(), **arguments})
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"training.safetensors", "lock"}
    assert (tmp_path / "training.safetensors").read_bytes() == saved.read_bytes()


CHANGES: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], Any]] = {
    "a tensor less": lambda tensors, meta: tensors.pop("due"),
    "a tensor more": lambda tensors, meta: tensors.update(more=torch.zeros(3)),
    "another shape": lambda tensors, meta: tensors.update(due=torch.zeros(4, dtype=torch.long)),
    "another dtype": lambda tensors, meta: tensors.update(due=torch.zeros(3)),
    "half of the moments": lambda tensors, meta: tensors.pop(min(n for n in tensors if n.endswith(".exp_avg"))),
    "a generator of zeros": lambda tensors, meta: tensors["generator"].zero_(),
    "no meta_step": lambda tensors, meta: meta.pop("meta_step"),
    "a meta_step of text": lambda tensors, meta: meta.update(meta_step="7"),
    "a negative meta_step": lambda tensors, meta: meta.update(meta_step=-1),
    "no count": lambda tensors, meta: meta.update(failed=None),
    "a meta_loss of text": lambda tensors, meta: meta.update(meta_loss=[]),
    "decay_steps of text": lambda tensors, meta: meta.update(decay_steps="x"),
    "an identity of text": lambda tensors, meta: meta.update(of="x"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_state_that_does_not_fit_is_refused_in_one_line(saved: Path, tmp_path: Path, name: str) -> None:
    tensors, meta = load_tensors(saved)
    meta = copy.deepcopy(meta)
    CHANGES[name](tensors, meta)
    save_tensors(tmp_path / "training.safetensors", tensors, meta)
    with pytest.raises(UserError, match="the saved state") as caught:
        resume(tmp_path, rule())
    assert "\n" not in str(caught.value)


def test_what_it_does_not_say_is_not_held_against_it(saved: Path, tmp_path: Path) -> None:
    """States of version 0.1 do not say what they are of, and later versions have more arguments."""
    tensors, meta = load_tensors(saved)
    for change in (lambda of: None, lambda of: {**of, "rule": {**of["rule"], "init_args": {"hidden_size": 3}}}):
        of = change(json.loads(json.dumps(meta["of"])))
        folder = tmp_path / str(of is None)
        folder.mkdir()
        held = {**meta, "of": of} if of else {name: value for name, value in meta.items() if name != "of"}
        save_tensors(folder / "training.safetensors", tensors, held)
        resume(folder, rule())
        assert (folder / "rule.safetensors").exists()
