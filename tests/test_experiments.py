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
