"""Runs that begin from other runs, rules that were trained in Python, and settings that belong together."""

import json
import os
import sys

import pytest
import torch

import meta_teleport as mt
from meta_teleport.cli.main import main
from meta_teleport.evaluation.methods import BASELINES, Baseline
from meta_teleport.rules.classical import Adam

SMALL = ["--training.tasks=4", "--training.window=2", "--training.meta_steps=2", "--task.width=3"]
LAYERWISE = ["--rule=Layerwise", "--rule.hidden_size=4", *SMALL]
EVALUATE = ["--tasks=3", "--steps=2"]
OWN = """
from meta_teleport.learned.coordinatewise import Coordinatewise

class Mine(Coordinatewise):
    '''A rule of one's own.'''
    def __init__(self, hidden_size: int = 3) -> None:
        super().__init__(hidden_size, horizon=4)
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A working directory, which is the home folder too, with a module that is forgotten afterwards. Evaluations have
    one baseline, to be quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    baselines = dict(BASELINES)  # whose order counts
    BASELINES.clear()
    BASELINES["adam"] = Baseline(Adam, {"lr": [0.01, 0.1, 1.0]})
    (tmp_path / "own_rules.py").write_text(OWN)
    yield tmp_path
    sys.modules.pop("own_rules", None)
    BASELINES.clear()
    BASELINES.update(baselines)


def config_of(folder):
    with open(f"{folder}/config.json") as file:
        return json.load(file)


def error(capsys, *argv):
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err.removeprefix("meta-teleport: error: ").strip()


def train(*flags):
    assert main(["train", *flags]) == 0


def test_the_config_of_a_run_starts_a_new_one(capsys):
    train("--out=a", "--seed=3", "--training.horizon=4", *LAYERWISE)
    train("--out=b", "--config=a/config.json")
    assert config_of("a") == config_of("b")
    train("--out=c", "--config=a/config.json", "--seed=4", "--rule.hidden_size=5")
    assert config_of("c")["seed"] == 4 and config_of("c")["rule"]["init_args"]["hidden_size"] == 5
    with open("d.json", "w") as file:
        json.dump({**config_of("a"), "format": 2}, file)
    assert "d.json has format 2 and this version" in error(capsys, "train", "--out=d", "--config=d.json")


def test_a_file_never_causes_an_import_and_the_error_tells_the_command_that_does(capsys):
    train("--out=a", "--import", "own_rules", "--rule=Mine", *SMALL)
    assert config_of("a")["import"] == ["own_rules"]
    again = "if you trust its author, by: meta-teleport"
    for module in (None, "own_rules"):
        for argv in (
            ["evaluate", "a", *EVALUATE],
            ["train", "--out=b", "--config=a/config.json"],
            ["train", "--out=a", "--resume"],
            ["evaluate", "a/rule.safetensors", *EVALUATE],
        ):
            if module is None:
                sys.modules.pop("own_rules", None)
                message = error(capsys, *argv)
                assert message.endswith(f"{again} {' '.join(argv)} --import own_rules")
                assert "own_rules" not in sys.modules
            else:
                assert main([*argv, "--import", module]) == 0


def test_hostile_names_of_modules_are_not_repeated(capsys):
    train("--out=a", "--import", "own_rules", "--rule=Mine", *SMALL)
    for hostile in (["own_rules; rm -rf x", 3, None, "\x1b[2J"], "own_rules", {"own": 1}):
        with open("c.json", "w") as file:
            json.dump({**config_of("a"), "import": hostile}, file)
        sys.modules.pop("own_rules", None)
        message = error(capsys, "train", "--out=b", "--config=c.json")
        assert message.endswith("--config=c.json --import own_rules")


def test_a_rule_that_was_trained_in_python_is_saved_loaded_and_evaluated(capsys):
    rule, family = mt.Layerwise(hidden_size=4, horizon=4), mt.Regression(3)
    mt.train(rule, family, mt.TrainingConfig(meta_steps=2, tasks=3, window=2, horizon=4), seed=5)
    mt.save(rule, "saved")
    mt.save(rule, "one.safetensors")
    for place in ("saved", "one.safetensors"):
        again = mt.load(place)
        assert again.meta_step == 2 and again.config["seed"] == 5 and again.config["training"]["horizon"] == 4
        assert all(torch.equal(a, b) for a, b in zip(rule.parameters(), again.parameters(), strict=True))
        assert main(["evaluate", place, *EVALUATE]) == 0
    assert any(name.startswith("evaluation") for name in os.listdir("saved"))
    assert any(name.startswith("evaluation") for name in os.listdir("runs/evaluation-one"))
    again = mt.load("saved")
    mt.train(again, mt.Mixture([family, mt.Functions("booth")]), mt.TrainingConfig(2, 3, window=2, horizon=4))
    mt.save(again, "mixed")
    families = mt.load("mixed").config["task"]["init_args"]["families"]
    assert [f["class_path"] for f in families] == ["Regression", "Functions"]
    assert main(["evaluate", "mixed", "--task=Functions", *EVALUATE]) == 0


def test_a_rule_with_sizes_of_one_network_from_python():
    tasks = mt.Regression(3).sample(1, torch.Generator().manual_seed(0))
    rule = mt.LSTMUpdate(mt.shapes_of(tasks.params, tasks.symmetry), 4)
    mt.save(rule, "fresh")
    assert mt.load("fresh").config == {
        "rule": {
            "class_path": "LSTMUpdate",
            "init_args": {
                "hidden_size": 4, "layers": 2, "features": "normalized", "gradient_term": True, "safeguard": True
            },
        }
    }  # fmt: skip


def test_a_saved_rule_that_does_not_say_what_it_was_trained_on(capsys):
    mt.save(mt.Layerwise(hidden_size=4, horizon=4), "fresh")
    assert "fresh does not say what it was trained on: choose what" in error(capsys, "evaluate", "fresh", *EVALUATE)
    assert main(["evaluate", "fresh", "--task=Regression", "--task.width=3", *EVALUATE]) == 0
    tasks = mt.Regression(3).sample(1, torch.Generator().manual_seed(0))
    mt.save(mt.LSTMUpdate(mt.shapes_of(tasks.params, tasks.symmetry), 4), "timeless")
    flags = ["--task=Regression", "--task.width=3", *EVALUATE]
    assert "timeless does not say for how many steps" in error(capsys, "evaluate", "timeless", *flags)
    assert main(["evaluate", "timeless", "--horizon=2", *flags]) == 0


def test_rules_that_were_made_with_more_than_plain_data_say_so():
    from meta_teleport.rules.wrappers import WithoutElements

    for rule in (Adam(torch.ones(2)), WithoutElements(mt.Layerwise()), mt.Equivariant().over(Adam(0.1))):
        with pytest.raises(mt.UserError, match="has no config: give save one"):
            mt.save(rule, "a")
    assert not os.path.exists("a")


def test_a_resumed_run_keeps_its_schedule_and_then_its_last_rate(capsys, monkeypatch):
    from meta_teleport.meta.trainer import Trainer

    rates, step = [], Trainer.step

    def noted(self):
        estimate = step(self)
        rates.append(self.adam.param_groups[0]["lr"])
        return estimate

    monkeypatch.setattr(Trainer, "step", noted)
    train("--out=whole", "--training.meta_steps=6", "--training.decay_steps=4", *LAYERWISE[:-2], "--task.width=3")
    flags = [flag for flag in LAYERWISE if "meta_steps" not in flag]
    whole, rates[:] = list(rates), []
    train("--out=a", "--training.meta_steps=4", *flags)
    capsys.readouterr()
    train("--out=a", "--resume", "--training.meta_steps=5")
    assert capsys.readouterr().err == (
        "learning rates fall for 4 meta-steps, as the run began, and stay at their last values up to meta-step 5\n"
    )
    train("--out=a", "--resume", "--training.meta_steps=6")
    assert rates == whole and len(set(rates[3:])) == 1 and rates[3] < rates[2]
    assert config_of("a")["training"]["decay_steps"] == 4


def test_the_same_in_python(tmp_path):
    from meta_teleport.meta.trainer import Trainer

    family, rule = mt.Regression(3), mt.Layerwise(hidden_size=4, horizon=4)
    first = Trainer(rule, family, mt.TrainingConfig(4, 3, window=2, horizon=4), 0)
    for _ in range(4):
        first.step()
    second = Trainer(mt.Layerwise(hidden_size=4, horizon=4), family, mt.TrainingConfig(9, 3, window=2, horizon=4), 0)
    second.restore(*first.state())
    second.step()
    assert second.adam.param_groups[0]["lr"] == first.adam.param_groups[0]["lr"]


def test_the_arguments_of_one_class_in_a_file_do_not_reach_another(capsys):
    with open("c.yaml", "w") as file:
        file.write("rule: {class_path: LSTMUpdate, init_args: {hidden_size: 9, layers: 1}}\ntask: {class_path: ")
        file.write("Regression, init_args: {width: 4}}\ntraining: {tasks: 4, window: 2, meta_steps: 1}\n")
    train("--out=a", "--config=c.yaml", "--rule=Equivariant", "--task=Functions", "--task.function=booth")
    assert config_of("a")["rule"]["init_args"]["hidden_size"] == 32
    assert capsys.readouterr().err.splitlines() == [
        "c.yaml sets width of Regression, and --task is Functions: these are left out",
        "c.yaml sets hidden_size, layers of LSTMUpdate, and --rule is Equivariant: these are left out",
    ]
    with open("d.yaml", "w") as file:
        file.write("rule: Layerwise\n")
    train("--out=b", "--config=c.yaml", "--config=d.yaml")
    assert config_of("b")["rule"]["init_args"]["hidden_size"] == 32
    train("--out=c", "--config=c.yaml")
    assert config_of("c")["rule"]["init_args"]["hidden_size"] == 9


@pytest.mark.parametrize(
    ("flags", "horizons", "line"),
    [
        ([], (30, 30), ""),
        (["--training.horizon=8"], (8, 8), ""),
        (["--rule.horizon=6"], (6, 6), ""),
        (["--rule.horizon=8", "--training.horizon=8"], (8, 8), ""),
        (["--rule.horizon=6", "--training.horizon=8"], (6, 8), "made for 6 steps (rule.horizon) and trained for 8 ("),
        (["--config=c.yaml", "--training.horizon=8"], (6, 8), "made for 6 steps (rule.horizon) and trained for 8 ("),
        (["--config=d.yaml"], (8, 8), ""),
    ],
)
def test_the_two_horizons_are_one_unless_both_are_given(capsys, flags, horizons, line):
    for name, text in (
        ("c", "rule: {class_path: Layerwise, init_args: {horizon: 6}}"),
        ("d", "training: {horizon: 8}"),
    ):
        with open(f"{name}.yaml", "w") as file:
            file.write(text)
    train("--out=a", *LAYERWISE, *flags)
    config = config_of("a")
    assert (config["rule"]["init_args"]["horizon"], config["training"]["horizon"]) == horizons
    shown = capsys.readouterr().err
    assert (line in shown and shown.count("\n") == 1) if line else shown == ""
    train("--out=a", "--resume", "--training.meta_steps=3")
    assert config_of("a")["rule"] == config["rule"]


def test_rules_without_a_horizon_are_trained_for_that_of_the_training(capsys):
    train("--out=a", "--rule=LSTMUpdate", "--rule.hidden_size=3", *SMALL)
    assert config_of("a")["training"]["horizon"] == 50
    assert "horizon 5 is no multiple of window 2" in error(capsys, "train", "--out=b", "--rule.horizon=5", *LAYERWISE)


def test_the_home_folder_in_every_path(workplace, capsys):
    (workplace / "c.yaml").write_text("seed: 7\n")
    train("--out=~/a", "--config=~/c.yaml", "--training.horizon=4", *LAYERWISE)
    assert config_of("a")["seed"] == 7
    train("--out=~/a", "--resume", "--training.meta_steps=3")
    assert main(["evaluate", "~/a", "--out=~/results", *EVALUATE]) == 0
    assert main(["info", "~/a"]) == 0
    rule = mt.load("~/a")
    mt.save(rule, "~/saved")
    assert mt.Run.open("~/a").config["seed"] == 7
    assert {"a", "results", "saved"} <= set(os.listdir(workplace)) and "~" not in os.listdir(workplace)
