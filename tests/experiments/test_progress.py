"""What is finished is kept and not done again, a stop ends after the part under way, files of others are refused."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from experiments.lab.progress import Stopped, collect, kept
from meta_teleport.errors import UserError

NAMES = ("one", "The second!", "three")


class Bench:
    """Three parts that count what was made, the first of which is interrupted by Ctrl-C."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def make(self, name: str) -> dict[str, Any]:
        self.made.append(name)
        if self.made == ["one"]:
            signal.raise_signal(signal.SIGINT)
        return {"number": len(self.made)}

    def parts(self) -> dict[str, Callable[[], dict[str, Any]]]:
        return {name: partial(self.make, name) for name in NAMES}


def test_a_stop_ends_after_the_part_under_way_and_finished_ones_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench, keep = Bench(), tmp_path / "new" / "progress"
    with pytest.raises(Stopped) as stopped:
        collect(bench.parts(), keep, {"threads": 1})
    assert str(stopped.value) == "stopped before The second!; the same command goes on from there"
    found = collect(bench.parts(), keep, {"threads": 1})
    assert bench.made == list(NAMES) and [found[name]["number"] for name in NAMES] == [1, 2, 3]
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == list(NAMES)
    assert collect(bench.parts(), keep, {"threads": 1}) == found and len(bench.made) == 3


def test_a_file_of_other_settings_is_refused_before_anything_runs(tmp_path: Path) -> None:
    bench = Bench()
    bench.made.append("not interrupted")
    collect({"three": bench.parts()["three"]}, tmp_path, {"threads": 1, "smoke": True})
    with pytest.raises(UserError) as error:
        collect(bench.parts(), tmp_path, {"threads": 2, "smoke": True})
    path = tmp_path / "three.json"
    assert str(error.value) == f"{path} belongs to a run with other threads: delete it, or choose another --out"
    assert bench.made == ["not interrupted", "three"]


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"parts": {}}')
    with pytest.raises(UserError, match="is of another version: delete it"):
        kept(tmp_path / "old.json", dict, {})
