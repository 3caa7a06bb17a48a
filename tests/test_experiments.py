"""The experiments run from end to end on toy sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.mark.slow
def test_learning_to_teleport(tmp_path: Path) -> None:
    script = str(EXPERIMENTS / "learning_to_teleport.py")
    command = [sys.executable, script, "--smoke", "--out", str(tmp_path), "--seeds", "0", "1"]
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
    assert results["meta_seeds"] == {"published": 2, "better": 2}
    assert (tmp_path / "learning_to_teleport.png").stat().st_size > 10_000


def test_symmetries(tmp_path: Path) -> None:
    command = [sys.executable, str(EXPERIMENTS / "symmetries.py"), "--smoke", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    models = json.loads((tmp_path / "symmetries.json").read_text())["models"]
    assert {name: len(found["sites"]) for name, found in models.items()} == {
        "transformers LLaMA": 11,
        "peft LoRA on GPT-2": 2,
        "nn.Transformer": 17,
    }
    assert all(found["drift"] < 1e-12 for found in models.values())
    assert sum(line.startswith("| ") for line in result.stdout.splitlines()) == 1 + len(models)
