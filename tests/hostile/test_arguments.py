"""Every argument of every family and rule that a file can name, with texts that name programs and absurd numbers."""

import contextlib
import inspect
import json
import resource
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import meta_teleport as mt
from meta_teleport.cli.class_choice import FAMILIES_AND_RULES
from meta_teleport.cli.main import _family
from meta_teleport.learned.serialization import build
from meta_teleport.registry import construct, is_ours, known
from meta_teleport.rules.rule import Rule, shapes_of
from meta_teleport.specs import check
from meta_teleport.tasks.family import TaskFamily

TRAP = {"class_path": "own_payload.Trap"}
PROGRAM = {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "executed"]}}
NAMED = "own_payload.Trap"
TEXTS: list[Any] = [
    NAMED,
    f" {NAMED} ",
    f"'{NAMED}'",
    f'"{NAMED}"',
    f"\n{NAMED}\n",
    f"- {NAMED}",
    f"[{NAMED}]",
    f"a: {NAMED}",
    f"!!python/name:{NAMED}",
    "!!python/object/apply:os.mkdir [executed]",
    json.dumps(TRAP),
    json.dumps([TRAP]),
    json.dumps(json.dumps(TRAP)),
    '{"class\\u005fpath": "own_payload.Trap"}',
    "os.mkdir",
    "builtins.exec",
    "__import__('os').mkdir('executed')",
    "$(mkdir executed)",
    "own_payload.yaml",
    "own_payload",
    TRAP,
    PROGRAM,
    [TRAP],
    [[TRAP]],
    [NAMED],
    {"a": TRAP},
    {"a": [{"b": NAMED}]},
    {"class_path": "own_payload.Trap", "init_args": None},
    {"class_path": ["own_payload.Trap"]},
    {"a.class_path": NAMED},
    {"init_args.class_path": NAMED},
]
NUMBERS: list[Any] = [0, -1, 10**6, 10**12, 2**62, float("nan"), float("inf"), -0.5, 1e300, None, True, "3", [], [0]]
NUMBERS += [[-1], [10**9], [1] * 2000, ["x"], {}, [[1]]]
SMALL = {"width": 4, "heads": 1, "points": 8, "test": 2, "pool": 1, "pretraining_steps": 1, "pretraining_batch": 2}
NEEDED: dict[str, dict[str, Any]] = {
    "Adapters": {**SMALL, "rank": 1, "batch": 2, "layers": 1},
    "AttentionPairs": {**SMALL, "batch": 2, "layers": 1},
    **{name: {"lr": 0.1} for name in ("GradientDescent", "Momentum", "Adam")},
}
CLASSES = [(base, name) for base in (TaskFamily, Rule) for name, cls in known(base).items() if is_ours(cls)]


def places() -> list[tuple[type, str, str]]:
    """Base, class and argument: all that a file can set."""
    return [
        (base, name, argument)
        for base, name in CLASSES
        for argument in inspect.signature(known(base)[name]).parameters
        if argument != "shapes"
    ]


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, from which Python imports, with a module that leaves a mark."""
    (tmp_path / "own_payload.py").write_text("import os\nos.mkdir('executed')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_there_are_places_of_all_kinds() -> None:
    assert len(places()) > 150 and len(TEXTS) >= 30


@pytest.mark.slow
def test_no_text_in_any_place_leads_to_a_program(trap: Path) -> None:
    for base, name, argument in places():
        for value in TEXTS:
            spec = {"class_path": name, "init_args": {**NEEDED.get(name, {}), argument: value}}
            for use in (partial(check, {"any": spec}, FAMILIES_AND_RULES), partial(construct, spec, base)):
                with contextlib.suppress(mt.UserError):
                    use()
            assert not (trap / "executed").exists() and "own_payload" not in sys.modules, (name, argument, value)


@pytest.mark.slow
def test_every_absurd_number_is_refused_in_one_line_and_little_memory(trap: Path) -> None:
    tasks = mt.Regression(3, bias=True).sample(1, torch.Generator().manual_seed(0))
    shapes = shapes_of(tasks.params, tasks.symmetry)
    used, faults = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for base, name, argument in places():
        for value in NUMBERS:
            spec = {"class_path": name, "init_args": {**NEEDED.get(name, {}), argument: value}}
            try:
                _family(spec, 4) if base is TaskFamily else build(spec, shapes)
            except mt.UserError as error:
                assert "\n" not in str(error)
            except Exception as error:
                faults.append(f"{name}.{argument} {value!r:.30}: {type(error).__name__} {error!s:.100}")
            more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used
            if more > 500 * 1024:
                faults.append(f"{name}.{argument} {value!r:.30}: {more / 1024:.0f} MB")
            used = max(used, used + more)
    assert faults == []
