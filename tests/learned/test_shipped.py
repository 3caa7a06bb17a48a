"""The rules that come with the package, by name; nothing here depends on what they have learned."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import meta_teleport as mt
from meta_teleport.cli.arguments import parse_evaluate, parse_train
from meta_teleport.cli.main import main
from meta_teleport.evaluation import evaluation
from meta_teleport.evaluation.methods import BASELINES
from meta_teleport.evaluation.tuning import fingerprint
from meta_teleport.learned.serialization import NAMED, build
from meta_teleport.registry import construct

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CONFIG, RULES = EXPERIMENTS / "factors.yaml", EXPERIMENTS / "factors" / "results" / "rules"
TRAINED: dict[str, tuple[Path, list[str]]] = {
    "factors": (CONFIG, []),
    "classification": (EXPERIMENTS / "classification.yaml", []),
    str(RULES / "without_teleports.safetensors"): (CONFIG, ["--rule.bases=[]"]),
    str(RULES / "adam_teleports.safetensors"): (EXPERIMENTS / "adam_teleports.yaml", []),
    str(RULES / "adapters.safetensors"): (EXPERIMENTS / "adapters.yaml", []),
}
SIZES = {"rank": 2, "inputs": 4, "outputs": 3, "points": 8, "batch": 4, "noise": 0, "missing": 0}
TINY = ["--task=Factorization", *(f"--task.{name}={size}" for name, size in SIZES.items()), "--tasks=4", "--steps=3"]
MIXTURE = [
    {"class_path": "Regression", "init_args": {"width": 3, "action": "scaling"}},
    {"class_path": "Factorization", "init_args": {"rank": 2, "inputs": 5, "outputs": 3, "points": 8, "batch": 4}},
    {"class_path": "Regression", "init_args": {"width": 4}},
]

TUNED = {name: dict.fromkeys(entry.grids, 1e-3) for name, entry in BASELINES.items()}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    return {name: value for key, inner in content.items() for name, value in flat(inner, f"{prefix}/{key}").items()}


def recipe(content: Any) -> Any:
    """The same without leaves to download, which are given by whoever runs it."""
    if isinstance(content, dict):
        kept = {name: recipe(inner) for name, inner in content.items() if name != "download"}
        return {name: inner for name, inner in kept.items() if name != "init_args" or inner}
    return [recipe(inner) for inner in content] if isinstance(content, list) else content


@pytest.mark.parametrize("name", NAMED)
def test_they_are_small_and_fit_every_network(name: str) -> None:
    rule = mt.load(name)
    assert isinstance(rule, mt.Rule) and rule.meta_step and rule.config
    assert rule.shapes is None and NAMED[name].stat().st_size < 2**20
    assert all(bool(torch.isfinite(p).all()) for p in rule.parameters())
    model, x = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2)), torch.randn(9, 5)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = rule.optimizer(model, x)
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.step(model(x).square().mean())
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert any(bool((p != b).any()) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", TRAINED, ids=lambda name: Path(name).stem)
def test_rules_are_trained_by_the_committed_configs(name: str) -> None:
    config, flags = TRAINED[name]
    asked = flat(recipe({"format": 1, **parse_train(["--config", str(config), "--out", "x", *flags]).config}))
    stored = flat(recipe(mt.load(name).config))
    assert stored.keys() <= asked.keys() and len(stored) > 20
    assert stored == {name: asked[name] for name in stored}


def test_the_name_is_not_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"class_path": "Equivariant", "init_args": {"hidden_size": 3}}
    mt.save(build(spec, None), "factors", {"rule": spec}, 7)
    assert Path("factors/rule.safetensors").exists() and mt.load("factors").config != {"rule": spec}
    for path in ("./factors", "factors/", Path("factors")):
        assert mt.load(path).meta_step == 7
    assert "./factors does not say what it was trained on" in error(capsys, "evaluate", "./factors")
    text = "factors is the name of a rule that comes with this package: write --out ./factors, or another"
    assert text in error(capsys, "train", "--out", "factors")


def test_evaluates_on_what_it_was_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    config = mt.load("factors").config
    assert config is not None
    family = construct(config["task"], mt.TaskFamily).members[0]
    asked = parse_evaluate(["factors"])
    assert fingerprint(construct(asked.task, mt.TaskFamily)) == fingerprint(family)
    assert asked.config == config and asked.folder == Path("runs/evaluation-factors")
    chosen = parse_evaluate(["factors", *TINY, "--out=a/b"])
    assert chosen.task["init_args"].items() >= SIZES.items() and chosen.folder == Path("a/b") and chosen.others == ()


def test_evaluate_writes_beside_the_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    monkeypatch.setattr(evaluation, "tune", lambda *_: TUNED)
    rule, package = mt.load("factors"), workplace / "package"
    assert rule.config is not None
    package.mkdir()
    short = {**rule.config, "training": {**rule.config["training"], "horizon": 3}}
    mt.save(rule, package / "rule.safetensors", short)
    monkeypatch.setitem(NAMED, "factors", package / "rule.safetensors")
    content = NAMED["factors"].read_bytes()
    Path("runs/evaluation-factors").mkdir(parents=True)
    assert main(["evaluate", "factors", *TINY]) == 0
    captured = capsys.readouterr()
    (path,) = Path("runs/evaluation-factors").glob("*.json")
    assert captured.err == "" and captured.out.endswith(f"{path.with_suffix('.png')}\n")
    found = json.loads(path.read_text())
    assert (found["family"], found["tasks"], found["steps"]) == ("factorization", 4, 3)
    (kind,) = [method["kind"] for name, method in found["methods"].items() if name == "equivariant"]
    assert kind == "learned"
    assert os.listdir(package) == ["rule.safetensors"] and NAMED["factors"].read_bytes() == content


def test_nothing_is_made_where_nothing_can_be_written(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    (workplace / "file").touch()
    message = error(capsys, "evaluate", "factors", *TINY, "--out", "file/deep/er")
    assert "folder file/deep/er cannot be written: check its permissions, or choose another by --out" in message
    assert "must all be at least 1" in error(capsys, "evaluate", "factors", *TINY, "--tasks=0")
    assert os.listdir(workplace) == ["file"]


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "factors", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["config"] == mt.load("factors").config and content["folder"] is None
    assert main(["info", "factors"]) == 0
    assert capsys.readouterr().out.startswith(f"factors: {content['meta_step']} of ")


def test_a_run_on_several_families_is_evaluated_on_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--training.tasks=2", "--training.window=2", "--training.horizon=2", "--training.meta_steps=3"]
    nested = [MIXTURE[0], {"class_path": "Mixture", "init_args": {"families": MIXTURE[1:]}}]
    families = f"--task.families={json.dumps(nested)}"
    rule = ["--rule=Equivariant", "--rule.hidden_size=3", "--rule.horizon=2"]
    assert main(["train", "--out=a", "--task=Mixture", families, *rule, *flags]) == 0
    members = construct(mt.Run.open("a").config["task"], mt.TaskFamily).members
    assert len(members) == 3

    def family(*argv: str) -> mt.TaskFamily:
        found: mt.TaskFamily = construct(parse_evaluate(["a", *argv]).task, mt.TaskFamily)
        return found

    assert fingerprint(family()) == fingerprint(members[0]) != fingerprint(members[2])
    assert fingerprint(family("--task=Regression")) == fingerprint(members[0])
    assert fingerprint(family("--task=Factorization")) == fingerprint(members[1])
    assert fingerprint(family("--task.width=4", "--task.action=general_linear")) == fingerprint(members[2])
    assert isinstance(family("--task=Functions"), mt.Functions)
    capsys.readouterr()
    monkeypatch.setattr(evaluation, "tune", lambda *_: TUNED)
    Path("b").mkdir()
    assert main(["evaluate", "a", "--tasks=2", "--steps=2", "--out=b"]) == 0
    expected = "a: evaluated on the first of its families; the others by --task: Factorization, Regression\n"
    assert capsys.readouterr().err == expected
    names = [name.partition("-seed")[0] for name in os.listdir("b")]
    assert names == ["evaluation-regression"] * 2 and not [n for n in os.listdir("a") if n.startswith("evaluation")]
