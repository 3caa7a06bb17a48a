"""Every hostile file and folder through every command and function that reads it: nothing runs, little is used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile.cases import write_files, write_folders

from meta_teleport.cli.main import main

SOURCES = Path(__file__).parents[1]
GROWTH = 500
"""Megabytes that one case may use above what the program itself does."""
HARMLESS = ("metrics.jsonl: ", "tuning.json: ", "evaluation-own-seed0-01234567.json: ")
"""What may be broken without a refusal: a run can do without it."""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A small run that is whole."""
    small = ["--training.tasks=3", "--training.window=2", "--training.horizon=4", "--training.meta_steps=2"]
    assert (
        main(
            [
                "train",
                "--out",
                str(tmp_path / "good"),
                "--rule=Coordinatewise",
                "--rule.hidden_size=3",
                "--task.width=3",
                *small,
            ]
        )
        == 0
    )
    return tmp_path / "good"


def test_there_are_many_and_each_is_made_the_same_way_twice(good: Path, tmp_path: Path) -> None:
    made = []
    for name in ("first", "second"):
        place = tmp_path / name
        place.mkdir()
        paths = {**write_files(place), **{case: path for case, (_, path) in write_folders(good, place).items()}}
        made.append([(case, str(path.relative_to(place))) for case, path in paths.items()])
    assert made[0] == made[1] and len(made[0]) >= 150


@pytest.mark.slow
def test_nothing_of_a_strangers_is_executed_and_all_is_refused_in_one_line(good: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    paths = [str(SOURCES), str(SOURCES.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "hostile.audit", str(good), str(place)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "XDG_STATE_HOME": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["seen"] == {} and found["faults"] == {}
    assert {case: mb for case, mb in found["megabytes"].items() if mb > GROWTH} == {}
    read = [case for case in found["cases"] if case not in found["refused"]]
    assert [case for case in read if not case.startswith(HARMLESS)] == []
