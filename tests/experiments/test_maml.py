"""The MAML experiment: its learned rules, its intervals, the script from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.lab import meta_training
from experiments.lab.intervals import student
from experiments.maml import rules as maml_rules
from experiments.maml import run as maml
from experiments.maml.report import summary
from meta_teleport.errors import UserError
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.tasks.few_shot import FewShot

SCRIPT = ("-m", "experiments.maml.run")


def test_a_rule_is_trained_once_and_its_curve_is_that_of_its_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"ways": 2, "shots": 2, "queries": 3, "pixels": 4, "hidden": [4], "start": 0}
    training = TrainingConfig(meta_steps=2, tasks=3, window=2, horizon=4)
    rule = maml_rules.trained_rule(arguments, training, 0, tmp_path)
    monkeypatch.setattr(meta_training, "train", None)
    again = maml_rules.trained_rule(arguments, training, 0, tmp_path)
    tasks = FewShot(**arguments).sample(5, torch.Generator().manual_seed(0), "held_out")
    loss, accuracy = maml_rules.query_curves(again, tasks, 3)
    assert loss.shape == accuracy.shape == (4, 5)
    assert torch.equal(loss[0], tasks.query_loss(tasks.params)) and not torch.equal(loss[0], loss[3])
    assert torch.equal(loss, maml_rules.query_curves(rule, tasks, 3)[0])
    control = maml_rules.CONTROLS["identity elements"](rule, tasks)
    assert not torch.equal(maml_rules.query_curves(control, tasks, 3)[0], loss)


def test_intervals_are_students() -> None:
    mean, low, high = student(torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64))
    half = 3.182446 * (14 / 3 / 4) ** 0.5
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half), rel=1e-6)


def test_differences_are_paired_by_seed_and_task() -> None:
    generator = torch.Generator().manual_seed(0)
    loss = torch.rand(6, 3, 50, generator=generator) * 5
    curves = {"MAML": (loss, loss), "MAML, random": (loss + 1, loss - 0.5), "MAML, gradient norm": (loss, loss)}
    found = summary(curves, {name: {} for name in curves}, 2)
    rows = {(c["a"], c["b"], c["step"]): c for c in found["comparisons"]}
    assert rows["MAML, random", "MAML", 2]["loss"] == pytest.approx([1, 1, 1], abs=1e-5)
    assert rows["MAML, random", "MAML", 5]["accuracy"] == pytest.approx([-0.5] * 3, abs=1e-5)
    assert rows["MAML, gradient norm", "MAML, random", 2]["loss"][0] == pytest.approx(-1, abs=1e-5)
    assert len(rows) == 6
    low, high = found["methods"]["MAML"]["loss"][2][1:]
    assert high - low > 0.01


def test_losses_of_tasks_that_diverged_are_bounded() -> None:
    loss, accuracy = torch.full((3, 2, 4), 2.0), torch.ones(3, 2, 4)
    loss[1, 0] = torch.tensor([torch.nan, torch.inf, 1e9, 2.0])
    found = summary({"MAML": (loss, accuracy)}, {"MAML": {}}, 1)["methods"]["MAML"]
    assert found["loss"][1][0] == pytest.approx((8 + 2) / 2) and found["loss"][0] == pytest.approx([2, 2, 2])


def command(*flags: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-W", "error", *SCRIPT, *flags]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_the_script(tmp_path: Path) -> None:
    done = command("--smoke", "--seeds", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "maml.json").read_text())
    assert content["smoke"] is True and content["settings"]["seeds"] == 2 and content["provenance"]["revision"]
    found = content["data"]["digits"]
    assert found["held_out_classes"] == [[0, 1, 2, 3], [4, 5, 6, 7]] and found["parameters"] < 2000
    kinds = ("balanced", "gradient norm", "random")
    names = ["MAML", *(f"MAML, {k}" for k in kinds), *(f"MAML, {k} at evaluation only" for k in kinds)]
    rules = ["LSTM(update, tele)", "LSTM(update, tele), identity elements", "LSTM(update, tele), random elements"]
    assert list(found["methods"]) == [*names, "gradient descent, no meta-training", *rules]
    for method in found["methods"].values():
        assert len(method["loss"]) == len(method["accuracy"]) == 11
        assert all(low <= mean <= high for mean, low, high in method["accuracy"])
        assert method.get("drift", 0) < 1e-4
    plain, moved = found["methods"]["MAML"], found["methods"]["MAML, gradient norm at evaluation only"]
    assert plain["accuracy"][0] == pytest.approx(moved["accuracy"][0]) and plain["loss"][5] != moved["loss"][5]
    assert moved["growth"] > 1.1 and moved["trained"] == "none" and moved["step_size"] == plain["step_size"]
    assert done.stdout.count("\n| MAML") == len(names) + 4 and done.stdout == (tmp_path / "maml.md").read_text() + "\n"
    assert all((tmp_path / f"maml{suffix}").stat().st_size > 10_000 for suffix in (".png", ".pdf"))
    told = [line for line in done.stderr.splitlines() if not line.startswith("LSTMUpdateTele, seed")]
    assert len(told) == 1 + len(found["methods"])
    again = command("--smoke", "--seeds", "2", "--out", str(tmp_path))
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")
    other = command("--smoke", "--seeds", "3", "--out", str(tmp_path))
    path = tmp_path / "digits" / "measured.json"
    assert other.stderr == f"error: {path} belongs to a run with other seeds: delete it, or choose another --out\n"
    assert other.returncode == 2


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--seeds", "1"], "intervals over meta-seeds need at least two: give --seeds 2 or more"),
        (["--device", "cuda"], "networks of this size are trained on the CPU: leave --device away"),
    ],
    ids=str,
)
def test_refusals(flags: list[str], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["maml.py", *flags])
    with pytest.raises(UserError) as error:
        maml.main()
    assert str(error.value) == text


def test_a_data_set_that_does_not_exist(tmp_path: Path) -> None:
    done = command("--out", str(tmp_path / "new"), "--data", "letters")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: unknown data set 'letters': choose one of digits, mnist, fashion_mnist, ")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "new").exists()
