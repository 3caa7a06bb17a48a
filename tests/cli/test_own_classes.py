"""Classes of one's own on the command line: what goes wrong in them is shown where it is, and can be tried again."""

import json
import os
import sys

import pytest
import torch

import meta_teleport as mt
from meta_teleport.cli.main import main
from meta_teleport.runs.run import Run

SMALL = ["--training.tasks=4", "--training.window=2", "--training.horizon=4", "--training.meta_steps=2"]
SMALL += ["--task.width=3"]

RULE = """
import torch
from torch import nn
from meta_teleport.rules.classical import NoState
from meta_teleport.rules.rule import Proposal, Rule

class Mine(Rule):
    '''Gradient descent with a learned step.'''
    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.lr, self.fault = nn.Parameter(torch.tensor(-7.0)), fault
        if fault == "made":
            raise RuntimeError("my own mistake")

    def init(self, params, symmetry):
        return torch.zeros(3) if self.fault == "state" else NoState()

    def forward(self, observation, state):
        update = {name: -self.lr.exp() * g for name, g in observation.gradients.items()}
        first = next(iter(update))
        if self.fault == "shape":
            update[first] = update[first].sum(-1)
        if self.fault == "name":
            del update[first]
        if self.fault == "proposal":
            return update, state
        algebra = ()
        if self.fault == "coordinates":
            algebra = (torch.zeros(1, 2),) * len(observation.symmetry.sites)
        if self.fault == "sites":
            algebra = (torch.zeros(1, 2),)
        if self.fault == "step":
            raise RuntimeError("my own mistake")
        return Proposal(update, algebra), state
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A working directory with the rule; it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_rule.py").write_text(RULE)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def train(*flags, out="a"):
    return main(["train", f"--out={out}", "--rule=own_rule.Mine", *SMALL, *flags])


def error(capsys, *argv):
    """The one line that a command fails with."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and len(captured.err) < 500
    return captured.err.removeprefix("meta-teleport: error: ").strip()


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (
            "shape",
            "Mine proposes an update of shape (4, 3) for 'layers.0.weight' of shape (4, 3, 3): give it that shape",
        ),
        ("name", "Mine proposes no update of 'layers.0.weight': give one for every parameter"),
        ("proposal", "Mine gives a dict: let forward return (Proposal(...), state)"),
        ("coordinates", "Mine proposes coordinates of shape (1, 2) at site '"),
        ("sites", "Mine proposes 1 elements for 2 sites: give one per site"),
        ("state", "the state of Mine holds a tensor of shape (3,): hold tensors alone, with the 4 tasks as first"),
    ],
)
def test_a_rule_that_breaks_its_contract_is_named(capsys, fault, text):
    flags = ["--rule=own_rule.Mine", f"--rule.fault={fault}", "--task.depth=3", *SMALL]
    assert text in error(capsys, "train", "--out=a", *flags)


def test_the_same_of_a_rule_at_ones_own_model():
    sys.path.insert(0, os.getcwd())
    from own_rule import Mine

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    from meta_teleport.optimizers.learned_optimizer import LearnedOptimizer

    optimizer = LearnedOptimizer(Mine("shape"), model, mt.Symmetry(()))
    with pytest.raises(mt.UserError, match=r"Mine proposes an update of shape \(1, 4\) for '0.weight'"):
        optimizer.step(model(torch.ones(2, 3)).square().mean())


@pytest.mark.parametrize("fault", ["made", "step"])
def test_an_error_in_a_class_of_ones_own_keeps_its_traceback(fault):
    with pytest.raises(RuntimeError, match="my own mistake") as caught:
        train(f"--rule.fault={fault}")
    assert caught.traceback[-1].path.name == "own_rule.py"


def test_an_error_in_a_family_of_ones_own_keeps_its_traceback(workplace):
    (workplace / "own_family.py").write_text(
        "from meta_teleport.tasks.regression import Regression\n"
        "class Strange(Regression):\n"
        "    def sample(self, *args, **kwargs):\n"
        "        raise IndexError('my own mistake')\n"
    )
    with pytest.raises(IndexError, match="my own mistake") as caught:
        train("--task=own_family.Strange")
    assert caught.traceback[-1].path.name == "own_family.py"


def test_a_rule_that_was_saved_and_fails_when_it_is_made_shows_where(workplace):
    assert train() == 0
    config = json.loads((workplace / "a/config.json").read_text())
    rule = mt.load("a")
    mt.save(rule, "b", {**config, "rule": {"class_path": "own_rule.Mine", "init_args": {"fault": "made"}}})
    with pytest.raises(RuntimeError, match="my own mistake") as caught:
        mt.load("b")
    assert caught.traceback[-1].path.name == "own_rule.py"


def test_a_module_that_fails_says_where(workplace, capsys):
    (workplace / "own_broken.py").write_text("x = 1\ny = x.nothing\n")
    (workplace / "own_typo.py").write_text("x = 1\ndef f(:\n")
    for name, text in (("own_broken", "own_broken.py line 2"), ("own_typo", "own_typo.py line 2")):
        assert text in error(capsys, "train", "--out=a", "--import", name)


def test_a_crash_at_the_first_step_leaves_a_folder_that_can_be_overwritten(workplace, capsys):
    with pytest.raises(RuntimeError, match="my own mistake"):
        train("--rule.fault=step")
    flags = ["--rule=own_rule.Mine", *SMALL]
    assert "or begin anew by --overwrite" in error(capsys, "train", "--out=a", *flags)
    (workplace / "a/notes.txt").write_text("precious")
    (workplace / "a/tensorboard").mkdir(exist_ok=True)
    (workplace / "a/tensorboard/notes.txt").write_text("precious")
    (workplace / "a/evaluation-regression-seed0-0123abcd.json").write_text("{}")
    assert train("--overwrite") == 0
    assert mt.load("a").meta_step == 2
    assert [(workplace / f"a/{name}notes.txt").read_text() for name in ("", "tensorboard/")] == ["precious"] * 2
    assert not (workplace / "a/evaluation-regression-seed0-0123abcd.json").exists()
    assert train("--overwrite", out="new") == 0


def test_overwriting_removes_nothing_of_others(workplace, capsys):
    flags = ["--rule=own_rule.Mine", *SMALL, "--overwrite"]
    (workplace / "mine").mkdir()
    for name in ("config.json", "thesis.tex"):
        (workplace / "mine" / name).write_text("{}")
    assert "mine is no run folder, and --overwrite removes only" in error(capsys, "train", "--out=mine", *flags)
    assert sorted(os.listdir("mine")) == ["config.json", "thesis.tex"]
    assert train() == 0
    (workplace / "a/rule.safetensors").rename(workplace / "kept.safetensors")
    (workplace / "a/rule.safetensors").symlink_to(workplace / "kept.safetensors")
    (workplace / "elsewhere").mkdir()
    (workplace / "elsewhere/events.out.tfevents.1").write_text("precious")
    os.rename("a/tensorboard", "old_tensorboard")
    (workplace / "a/tuning.json").mkdir()
    before = sorted(os.listdir("a"))
    assert "tuning.json is a folder, which no run has made" in error(capsys, "train", "--out=a", *flags)
    assert sorted(os.listdir("a")) == before
    os.rmdir("a/tuning.json")
    (workplace / "a/tensorboard").symlink_to(workplace / "elsewhere")
    with pytest.raises(mt.UserError, match="is no run folder"):
        Run.create(workplace, {}, overwrite=True)
    assert "choose one of them" in error(capsys, "train", "--out=a", "--resume", *flags)
    before = sorted(os.listdir("a"))
    assert "a/tensorboard is a link to elsewhere, and nothing is written" in error(capsys, "train", "--out=a", *flags)
    assert sorted(os.listdir("a")) == before
    os.unlink("a/tensorboard")
    assert train("--overwrite") == 0
    assert (workplace / "kept.safetensors").stat().st_size > 0
    assert (workplace / "elsewhere/events.out.tfevents.1").read_text() == "precious"
