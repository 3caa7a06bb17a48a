"""Every help text: choices and examples, no marks of docstrings."""

import re

import pytest

from meta_teleport.cli.main import main
from meta_teleport.cli.parser import plain
from meta_teleport.equivariant.bases import BASES
from meta_teleport.equivariant.updates import UPDATES
from meta_teleport.registry import PACKAGE, import_path, known
from meta_teleport.rules.rule import Rule
from meta_teleport.tasks.family import TaskFamily

MARKS = re.compile(r"`|:(mod|class|func|meth|attr|data):|module's docstring|<class")
CLASSES = [
    (key, cls)
    for key, base in (("task", TaskFamily), ("rule", Rule))
    for cls in known(base).values()
    if cls.__module__.startswith(PACKAGE)
]


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    try:
        assert main(list(argv)) == 0
    except SystemExit as end:
        assert end.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "evaluate", "info", "symmetries"])
def test_commands_show_examples_that_they_take(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, command, "--help")
    assert not MARKS.search(text) and f"examples:\n  meta-teleport {command} " in text


@pytest.mark.parametrize(("key", "cls"), CLASSES, ids=[cls.__name__ for _, cls in CLASSES])
def test_no_class_shows_marks_of_docstrings(key: str, cls: type, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "train", f"--{key}={cls.__name__}", "--help")
    assert f"flags of --{key} {cls.__name__}:" in text and not MARKS.search(text)
    assert not MARKS.search(shown(capsys, "train", f"--{key}.help={import_path(cls)}"))


def test_names_that_an_argument_takes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, "train", "--rule=Equivariant", "--help").split())
    update = text[text.index("--rule.update UPDATE ") :][:500]
    bases = text[text.index("--rule.bases BASES, ") :][:500]
    assert all(name in update for name in UPDATES) and all(name in bases for name in BASES)


def test_programs_and_doctor_are_plain_too(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["doctor", "--help"]):
        assert not MARKS.search(shown(capsys, *argv))


def test_marks_are_taken_away_over_line_ends() -> None:
    assert plain("Shorten them, see\n   :mod:`backtracking` (full ``n``).") == "Shorten them (full n)."
    assert plain("by (:meth:`a.b.\n   c`)") == "by (c)"
