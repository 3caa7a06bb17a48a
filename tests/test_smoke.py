"""Every script of the experiments runs with its smoke flag from an empty folder, as after a fresh clone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SCRIPTS = {path.stem: path.read_text() for path in sorted(EXPERIMENTS.glob("*.py"))}
SCRIPTS = {name: text for name, text in SCRIPTS.items() if "__main__" in text}
QUICK = {"displacement"}
"""Those of a few seconds. All others, new ones too, are marked slow."""


def flag_of(name: str) -> str:
    return "--quick" if '"--quick"' in SCRIPTS[name] else "--smoke"


def test_every_script_is_found() -> None:
    parsers = {path.stem for path in EXPERIMENTS.glob("*.py") if ".parse_args()" in path.read_text()}
    assert parsers == set(SCRIPTS) and parsers > QUICK


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SCRIPTS]
)
def test_a_script_from_an_empty_folder(name: str, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (EXPERIMENTS / "results").iterdir()}
    command = [sys.executable, str(EXPERIMENTS / f"{name}.py"), flag_of(name)]
    environment = os.environ | {"PYTHONPATH": str(EXPERIMENTS.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(tmp_path.rglob("*.*")) or name == "throughput", "every other script writes its results where it is run"
    assert before == {path: path.stat().st_mtime_ns for path in (EXPERIMENTS / "results").iterdir()}


def test_a_folder_that_cannot_be_made_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, str(EXPERIMENTS / "displacement.py"), "--smoke", "--out", str(tmp_path / "file" / "out")]
    environment = os.environ | {"PYTHONPATH": str(EXPERIMENTS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "cannot be made (Not a directory): choose another --out" in done.stderr
