"""The list of deliberate changes fits the code, and the runner tells those that are caught from those that are not."""

import ast
import shutil
from pathlib import Path
from typing import Any

import mutations
import pytest
import yaml

LISTED: list[dict[str, Any]] = yaml.safe_load((mutations.ROOT / "tests" / "mutations.yaml").read_text())


def named(mutation: dict[str, Any]) -> str:
    return f"{mutation['file']}: {mutation['change']}"


@pytest.mark.parametrize("mutation", LISTED, ids=named)
def test_changes_stand_once_in_their_files_and_their_tests_exist(mutation: dict[str, Any]) -> None:
    assert mutation.keys() == {"file", "change", "to", "tests"}
    text = (mutations.ROOT / mutation["file"]).read_text()
    assert text.count(mutation["change"]) == 1 and mutation["to"] != mutation["change"]
    ast.parse(text.replace(mutation["change"], mutation["to"]))
    for test in mutation["tests"]:
        file, function = test.split("::")
        nodes = ast.walk(ast.parse((mutations.ROOT / file).read_text()))
        assert function.partition("[")[0] in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_every_change_is_listed_once() -> None:
    assert len({(m["file"], m["change"], m["to"]) for m in LISTED}) == len(LISTED) > 0


TESTS = """
import pytest
from meta_teleport import half

def test_value():
    assert half(4) == 2

def test_refusal():
    with pytest.raises(ValueError):
        half(None)
"""
PACKAGE = 'def half(x):\n    if x is None:\n        raise ValueError("nothing")\n    return x / 2\n'


ENTRIES = {  # what is changed, to what, the test that is named, what the runner says of it
    "caught": ("x / 2", "x / 3", "test_value", "caught"),
    "caught as nothing is raised": ("raise ValueError", "return ValueError", "test_refusal", "caught"),
    "same": ("x / 2", "x * 0.5", "test_value", "SURVIVED: pytest exits with 0"),
    "an error": ("x / 2", "x / two", "test_value", "SURVIVED: tests/test_half.py::test_value fails, but by NameError"),
    "absent": ("x / 4", "x / 3", "test_value", "SURVIVED: its text stands 0 times in the file"),
}


def tree_with(folder: Path, *names: str) -> Path:
    """A package of the same name with one function, its tests, and a list of changes."""
    for name in ("meta_teleport", "experiments", "tests"):
        (folder / name).mkdir(parents=True)
    for name in ("pyproject.toml", "setup.cfg"):
        (folder / name).touch()
    (folder / "meta_teleport" / "__init__.py").write_text(PACKAGE)
    (folder / "tests" / "test_half.py").write_text(TESTS)
    listed = [
        {"file": "meta_teleport/__init__.py", "change": change, "to": to, "tests": [f"tests/test_half.py::{test}"]}
        for change, to, test, _ in (ENTRIES[name] for name in names)
    ]
    (folder / "tests" / "mutations.yaml").write_text(yaml.safe_dump(listed))
    return folder


def test_the_runner_tells_what_is_caught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree_with(tmp_path, *ENTRIES)
    assert mutations.main(["-j", "2"], root) == 1
    printed = capsys.readouterr().out
    for change, to, _, said in ENTRIES.values():
        assert f"meta_teleport/__init__.py: {change} -> {to}: {said}" in printed
    assert printed.splitlines()[-1] == "2 of 5 caught"
    assert (root / "meta_teleport" / "__init__.py").read_text() == PACKAGE
    assert mutations.main(["--only", "x / 3"], tree_with(tmp_path / "other", "caught", "same")) == 0


def test_the_runner_refuses_tests_that_fail_without_a_change(tmp_path: Path) -> None:
    root = tree_with(tmp_path, "caught")
    (root / "meta_teleport" / "__init__.py").write_text(PACKAGE.replace("2", "5"))
    with pytest.raises(SystemExit, match="the tests do not pass without any change"):
        mutations.main([], root)
    with pytest.raises(SystemExit, match="no change contains 'nowhere'"):
        mutations.main(["--only", "nowhere"], root)


def test_the_runner_refuses_a_package_that_is_not_the_copy(tmp_path: Path) -> None:
    root = tree_with(tmp_path, "caught")
    shutil.rmtree(root / "meta_teleport")
    (root / "meta_teleport").touch()
    with pytest.raises(SystemExit, match="the tests would import"):
        mutations.main([], root)
