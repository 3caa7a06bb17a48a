"""The storeys: who may import whom, and what importing the package must not drag in."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
PLANTS = {
    "params": "meta_teleport.symmetry.groups",
    "symmetry": "meta_teleport.teleportation.teleport",
    "tasks": "meta_teleport.rules.rule",
    "learned": "meta_teleport.tasks.family",
    "teleportation": "meta_teleport.meta.unroll",
    "errors": "meta_teleport.params",
}
HEAVY = ("torchvision", "learn2learn", "matplotlib", "sklearn", "tensorboard", "jsonargparse")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contract, free to be broken."""
    shutil.copytree(ROOT / "meta_teleport", tmp_path / "meta_teleport", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def test_contract_holds() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 kept, 0 broken" in result.stdout


@pytest.mark.parametrize("storey", PLANTS)
def test_contract_rejects_planted_import(copy: Path, storey: str) -> None:
    module = copy / "meta_teleport" / storey
    file = module / "planted.py" if module.is_dir() else module.with_suffix(".py")
    with file.open("a") as stream:
        stream.write(f"\nimport {PLANTS[storey]}\n")
    result = lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "0 kept, 1 broken" in result.stdout
    assert f"meta_teleport.{storey}" in result.stdout


def test_contract_rejects_a_module_without_a_storey(copy: Path) -> None:
    (copy / "meta_teleport" / "utils.py").write_text('"""A module that nobody placed."""\n')
    result = lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "utils" in result.stdout


def modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sorted(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("heavy", HEAVY)
def test_import_is_light(heavy: str) -> None:
    loaded = modules_after("import meta_teleport")
    assert "meta_teleport" in loaded
    assert heavy not in loaded


def test_import_check_sees_heavy_modules() -> None:
    assert "matplotlib" in modules_after("import meta_teleport, matplotlib")
