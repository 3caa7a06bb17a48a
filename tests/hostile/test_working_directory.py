"""What lies in the working directory is data: none of it is imported, whatever it is called."""

import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import meta_teleport

MARK = "import os\nos.mkdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'imported-' + __name__))\n"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(meta_teleport.__file__).parents[1])}
COMMANDS = {
    "train": ["train", "--help"],
    "info": ["info", "."],
    "evaluate": ["evaluate", "."],
    "doctor": ["doctor"],
    "symmetries": ["symmetries", "torch.nn:Identity", "--shape", "2,3"],
    "version": ["--version"],
}
ENDS = {"train": 0, "info": 2, "evaluate": 2, "doctor": 0, "symmetries": 2, "version": 0}
PROGRAM = f"""
from meta_teleport.cli.main import main

def ended(argv):
    try:
        return main(argv)
    except SystemExit as end:
        return end.code

print([ended(argv) for argv in {[*COMMANDS.values()]!r}])
"""
"""What the program that pip installs does, for all commands."""


@pytest.fixture
def names(tmp_path: Path) -> set[str]:
    """All that can be imported, but for what Python itself has imported before it comes to a program."""
    folder = tmp_path / "early"
    folder.mkdir()
    (folder / "early.py").write_text("import sys\nprint(*sys.modules)\n")
    done = run([sys.executable, "-m", "early"], folder)
    known = {name for name in (*sys.stdlib_module_names, *packages_distributions()) if name.isidentifier()}
    return known - set(done.stdout.split()) - {"meta_teleport"}


def run(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )


def fill(folder: Path, names: set[str]) -> None:
    """Modules of all these names, and a plug-in that torch would load."""
    for name in names:
        (folder / f"{name}.py").write_text(MARK)
    (folder / "plug_in-1.0.dist-info").mkdir()
    (folder / "plug_in-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: plug-in\nVersion: 1.0\n")
    (folder / "plug_in-1.0.dist-info/entry_points.txt").write_text("[torch.backends]\nplug = plug_in:start\n")
    (folder / "plug_in.py").write_text(MARK)


def imported(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith("imported-")]


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[] if name == "train" else [pytest.mark.slow]) for name in COMMANDS]
)
def test_the_module_imports_nothing_from_there(tmp_path: Path, names: set[str], command: str) -> None:
    fill(tmp_path, names)
    done = run([sys.executable, "-m", "meta_teleport", *COMMANDS[command]], tmp_path)
    assert imported(tmp_path) == [] and done.returncode == ENDS[command], done.stderr


@pytest.mark.slow
def test_the_program_imports_nothing_from_there(tmp_path: Path, names: set[str]) -> None:
    fill(tmp_path, names)
    (tmp_path / "meta_teleport").mkdir()
    (tmp_path / "meta_teleport/__init__.py").write_text(MARK)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/meta-teleport").write_text(PROGRAM)
    done = run([sys.executable, "bin/meta-teleport"], tmp_path)
    assert imported(tmp_path) == [] and done.stdout.splitlines()[-1] == str([*ENDS.values()]), done.stderr


def test_what_is_named_is_imported_and_stands_behind_every_library(tmp_path: Path) -> None:
    """Python looks for it in the working directory, after all other places."""
    (tmp_path / "own_things.py").write_text("import own_more\n")
    for name in ("own_more", "wave", "plug_in"):
        (tmp_path / f"{name}.py").write_text(MARK)
    code = (
        "import sys\nfrom meta_teleport.registry import import_module\nsys.path.remove('')\nimport_module('own_things')"
    )
    done = run(
        [sys.executable, "-c", f"{code}\nimport wave\nassert wave.__file__ != {str(tmp_path / 'wave.py')!r}"], tmp_path
    )
    assert imported(tmp_path) == ["imported-own_more"] and done.returncode == 0, done.stderr
