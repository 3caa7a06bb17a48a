"""Every script of the experiments runs with its smoke flag from an empty folder, as after a fresh clone."""

import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILES = sorted(EXPERIMENTS.glob("*/*.py"))
MODULES = {".".join(path.relative_to(EXPERIMENTS.parent).with_suffix("").parts): path.read_text() for path in FILES}
SCRIPTS = {name: text for name, text in MODULES.items() if "__main__" in text}
QUICK = {"experiments.displacement.run"}
"""Those of a few seconds. All others, new ones too, are marked slow."""
PARTS = {"experiments.held_out.run": ["f1"]}
"""What is asked of a script whose smoke run has more parts than minutes."""


def flag_of(name: str) -> str:
    return "--quick" if '"--quick"' in SCRIPTS[name] else "--smoke"


def written() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in EXPERIMENTS.glob("*/results/*")}


def test_every_script_is_found() -> None:
    parsers = {name for name, text in MODULES.items() if ".parse_args()" in text}
    assert parsers == set(SCRIPTS) and parsers > QUICK


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SCRIPTS]
)
def test_a_script_from_an_empty_folder(name: str, tmp_path: Path) -> None:
    before = written()
    command = [sys.executable, "-m", name, flag_of(name), *PARTS.get(name, [])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(tmp_path.rglob("*.*")) or name.endswith(".throughput"), (
        "every other script writes its results where it is run"
    )
    assert before == written()


def test_a_folder_that_cannot_be_made_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "experiments.displacement.run", "--smoke", "--out", str(tmp_path / "file" / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "cannot be made (Not a directory): choose another --out" in done.stderr
