"""What an evaluation leaves in a folder, through the command line."""

import json
import sys
from pathlib import Path

import pytest

import meta_teleport as mt
from meta_teleport.cli.main import main
from meta_teleport.evaluation import evaluation, results

SMALL = ["--training.tasks=4", "--training.window=2", "--training.horizon=4", "--rule=Equivariant"]
SMALL += ["--rule.hidden_size=3", "--rule.horizon=4", "--task.width=3", "--training.meta_steps=2"]
QUICK = ["--tasks=3", "--steps=4"]
TUNED = {name: {"lr": 1e-2} for name in ("gd", "momentum", "adam")} | {"gd-warmup": {"warmup_lr": 1e-3, "lr": 1e-2}}


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small run; nothing is tuned or drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(evaluation, "tune", lambda *_: TUNED)
    monkeypatch.setattr(results, "plot_evaluation", lambda _, path, __: path.write_bytes(b"a figure"))
    assert main(["train", "--out", "a", *SMALL]) == 0
    return tmp_path / "a"


def evaluate(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[Path, str]:
    """The file that is written or written anew, and what is said on standard error."""
    before = {path: path.stat().st_mtime_ns for path in Path("a").glob("evaluation*.json")}
    capsys.readouterr()
    assert main(["evaluate", "a", *QUICK, *flags]) == 0
    (path,) = [path for path in Path("a").glob("evaluation*.json") if before.get(path) != path.stat().st_mtime_ns]
    return path, capsys.readouterr().err


def test_a_file_says_what_was_evaluated(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = evaluate(capsys, "--task.noise=0.25", "--seed=7", "--dtype=float64")
    content = json.loads(path.read_text())
    assert path.name.startswith("evaluation-regression-seed7-")
    assert content["task"]["class_path"] == "Regression"
    assert content["task"]["init_args"].items() >= {"width": 3, "noise": 0.25, "data": "uniform"}.items()
    assert content["rule"].items() >= {"name": "a", "meta_step": 2}.items()
    assert (content["seed"], content["dtype"], content["tasks"], content["steps"]) == (7, "float64", 3, 4)
    where = content["provenance"]
    assert where["device"] == "cpu" and where["versions"]["torch"] and "revision" in where and where["time"]


def test_another_evaluation_replaces_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [[], ["--seed=1"], ["--dtype=float64"], ["--task.width=4"], ["--task=Functions"], ["--tasks=2"]]
    asked += [["--steps=5"], ["--task.noise=0.5"]]
    written = [evaluate(capsys, *flags) for flags in asked]
    assert all(said == "" for _, said in written)
    kept = {path: path.read_bytes() for path, _ in written}
    assert len(kept) == len(asked) == len(list(run.glob("evaluation*.png")))
    assert main(["train", "--out=a", "--resume", "--training.meta_steps=3"]) == 0
    path, said = evaluate(capsys)
    assert path not in kept and said == "" and json.loads(path.read_text())["rule"]["meta_step"] == 3
    assert {path: path.read_bytes() for path in kept} == kept


def test_the_same_evaluation_is_replaced_by_an_equal_one_and_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = evaluate(capsys)
    first = json.loads(path.read_text())
    again, said = evaluate(capsys)
    assert again == path and said.count("\n") == 1
    assert "with the same settings is replaced by an equal one" in said and first["provenance"]["time"] in said
    first["methods"]["adam"]["median"][-1] *= 2
    path.write_text(json.dumps(first))
    assert "is replaced by one that differs from it" in evaluate(capsys)[1]
    path.write_text('{"sch')
    assert "was cut off: written anew" in evaluate(capsys)[1]
    assert json.loads(path.read_text())["methods"].keys() == first["methods"].keys()


def test_info_lists_evaluations_older_ones_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = evaluate(capsys, "--seed=3")
    old = json.loads(path.read_text())
    for key in ("task", "rule", "seed", "dtype", "device", "fingerprint", "verdicts", "provenance"):
        del old[key]
    (run / "evaluation.json").write_text(json.dumps({**old, "schema": 1}))
    capsys.readouterr()
    assert main(["info", "a", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["evaluations"]
    assert set(found) == {path.name, "evaluation.json"}
    assert found[path.name]["seed"] == 3 and found["evaluation.json"]["seed"] is None
    assert main(["info", "a"]) == 0
    shown = capsys.readouterr().out
    assert "regression, 3 tasks, 4 steps, seed 3, dtype float32" in shown
    assert "regression, 3 tasks, 4 steps, seed unknown, dtype unknown" in shown


def test_members_of_a_family_are_told_apart_in_python_too() -> None:
    found = [mt.evaluate(None, mt.Regression(width), horizon=2, tasks=2, steps=2) for width in (3, 4, 3)]
    prints = [result.to_json()["fingerprint"] for result in found]
    assert prints[0] == prints[2] != prints[1]
