"""Modules, classes and functions that the documents and docstrings name are there."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "meta_teleport").rglob("*.py"), *(ROOT / "experiments").rglob("*.py"), *ROOT.glob("*.md")])
SOURCES += sorted((ROOT / "experiments").rglob("*.md"))
DOTTED = re.compile(r"(?<![\w./])(?:meta_teleport|experiments)(?:\.\w+)+(?![\w/])")
ROLE = re.compile(r":(?:mod|class|func|meth|attr):`~?([\w.]+)`")


def found(name: str) -> bool:
    """Whether the longest part of ``name`` that is a module has the rest as attributes."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            at: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            if not hasattr(at, attribute):
                return False
            at = getattr(at, attribute)
        return True
    return False


def anywhere(name: str, path: Path) -> bool:
    """Whether a role in ``path`` says where it leads: in full, from its own module, a class of it or its room, or as
    one of the package's public names."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if any(found(f"{at}{name}") for at in ("", f"{module}.", f"{module.rpartition('.')[0]}.", "meta_teleport.")):
        return True
    own = vars(importlib.import_module(module)).values()
    return any(isinstance(c, type) and hasattr(c, name) for c in own) or f"{name}:" in path.read_text()


def test_what_is_sought_is_told_from_what_is_not() -> None:
    assert found("meta_teleport.tasks.family.TaskFamily.sample") and found("meta_teleport.Regression")
    assert not found("meta_teleport.record") and not found("meta_teleport.tasks.family.Nope")
    assert DOTTED.findall("see meta_teleport.learned.equivariant.Equivariant.") == [
        "meta_teleport.learned.equivariant.Equivariant"
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    assert [name for name in set(DOTTED.findall(text)) if not found(name)] == []
    if path.suffix == ".py":
        assert [name for name in ROLE.findall(text) if not anywhere(name, path)] == []
