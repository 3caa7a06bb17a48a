"""The storeys: who may import whom, and what importing the package must not drag in."""

import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
PLANTS = {
    "params": "meta_teleport.symmetry.groups",
    "symmetry": "meta_teleport.teleportation.teleport",
    "tasks": "meta_teleport.rules.rule",
    "learned": "meta_teleport.equivariant.equivariant",
    "teleportation": "meta_teleport.meta.unroll",
    "errors": "meta_teleport.params",
}
CLAIMS = {
    "experiments/theory": "experiments.maml.runs",
    "experiments/lab": "experiments.theory.statement",
    "meta_teleport/models": "experiments.lab.tables",
}
"""What a claim, the lab and the package must not import."""
HEAVY = ("torchvision", "learn2learn", "matplotlib", "sklearn", "tensorboard", "jsonargparse")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package, the experiments and their contract, free to be broken."""
    for name in ("meta_teleport", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def test_contract_holds() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kept, 0 broken" in result.stdout


@pytest.mark.parametrize("storey", PLANTS)
def test_contract_rejects_planted_import(copy: Path, storey: str) -> None:
    module = copy / "meta_teleport" / storey
    file = module / "planted.py" if module.is_dir() else module.with_suffix(".py")
    with file.open("a") as stream:
        stream.write(f"\nimport {PLANTS[storey]}\n")
    result = lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "2 kept, 1 broken" in result.stdout
    assert f"meta_teleport.{storey}" in result.stdout


@pytest.mark.parametrize("place", CLAIMS)
def test_contract_keeps_claims_apart(copy: Path, place: str) -> None:
    module = copy / place
    file = module / "planted.py" if module.is_dir() else module.with_suffix(".py")
    with file.open("a") as stream:
        stream.write(f"\nimport {CLAIMS[place]}\n")
    result = lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "2 kept, 1 broken" in result.stdout
    assert place.replace("/", ".") in result.stdout


@pytest.mark.parametrize("package", ["meta_teleport", "experiments"])
def test_contract_rejects_a_module_without_a_storey(copy: Path, package: str) -> None:
    (copy / package / "utils.py").write_text('"""A module that nobody placed."""\n')
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


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, none if there is no such circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as found:
        return found.args[1]
    return []


@pytest.mark.parametrize("package", ["meta_teleport", "experiments"])
def test_no_module_is_in_a_circle_of_imports(package: str) -> None:
    graph = grimp.build_graph(package)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 100 and circle(imports) == []
    assert circle({**imports, "first": {"second"}, "second": {"first"}}) in (
        ["first", "second", "first"],
        ["second", "first", "second"],
    )
