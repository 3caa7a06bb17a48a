"""The experiments run from end to end on toy sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.learning_to_teleport import tuned_baselines
from experiments.learning_to_teleport.tuned_baselines import measured_baselines, spliced
from meta_teleport.evaluation.measurement import measure
from meta_teleport.evaluation.methods import BASELINES, TELEPORT_BASELINES, Settings, baseline
from meta_teleport.tasks.family import TaskFamily
from meta_teleport.tasks.regression import Regression


@pytest.mark.slow
def test_learning_to_teleport(tmp_path: Path) -> None:
    script = "-m", "experiments.learning_to_teleport.run"
    command = [sys.executable, *script, "--smoke", "--out", str(tmp_path), "--seeds", "0", "1"]
    for _ in range(2):  # the second time finds everything done
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    names = set(results["methods"])
    for settings in ("published", "better"):
        assert {
            f"{settings}/LSTMUpdate",
            f"{settings}/LSTMLrTele/identity",
            f"{settings}/LSTMUpdateTele/random",
        } <= names
    assert {"whitening", "last-layer-solve", "adam+ascent", "gd+random", "lbfgs", "gd-warmup"} <= names
    assert [run["tuned_for"] for run in results["methods"]["adam"]["runs"]] == [3, 10]
    assert {row["step"] for row in results["comparisons"]} == {3, 10}
    assert results["meta_seeds"] == {"published": 2, "better": 2}
    assert (tmp_path / "learning_to_teleport.png").stat().st_size > 10_000


def test_baselines_are_tuned_for_every_compared_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step the losses are those of the settings for the next compared one."""
    asked = []

    def tuned(family: TaskFamily, horizon: int, folder: Path) -> dict[str, Settings]:
        asked.append((horizon, folder))
        own = {"lr": 10.0**-horizon, "warmup_lr": 1e-3, "at": [0], "size": 0.1, "sizes": [0.1]}
        return {name: own for name in (*TELEPORT_BASELINES, *BASELINES) if name != "lbfgs"}

    monkeypatch.setattr(tuned_baselines, "tune", tuned)
    family = Regression(width=3)
    tasks = family.sample(2, torch.Generator().manual_seed(0), "held_out")
    found = measured_baselines(family, tasks, (2, 4), 0, tmp_path)
    assert asked == [(2, tmp_path), (4, tmp_path)] and list(found) == [*TELEPORT_BASELINES, *BASELINES]
    for step in (2, 4):
        alone = measure(baseline("adam", {"lr": 10.0**-step}, torch.Generator()), tasks, step).losses
        assert torch.equal(found["adam"]["losses"][0, step - 1 : step + 1], alone[-2:])
    assert [run["settings"]["lr"] for run in found["gd"]["runs"]] == [1e-2, 1e-4]
    assert [run["tuned_for"] for run in found["lbfgs"]["runs"]] == [4]
    assert all(m["losses"].shape == (1, 5, 2) for m in found.values())
    losses = {2: torch.zeros(3, 1), 4: torch.ones(5, 1), 5: torch.full((6, 1), 2.0)}
    assert spliced(losses).flatten().tolist() == [0, 0, 0, 1, 1, 2]


def test_symmetries(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.symmetries.run", "--smoke", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    models = json.loads((tmp_path / "symmetries.json").read_text())["models"]
    assert {name: len(found["sites"]) for name, found in models.items()} == {
        "transformers LLaMA": 13,
        "peft LoRA on GPT-2": 2,
        "nn.Transformer": 17,
    }
    assert all(found["drift"] < 1e-12 for found in models.values())
    assert sum(line.startswith("| ") for line in result.stdout.splitlines()) == 1 + len(models)
