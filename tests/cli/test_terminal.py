"""What is said while one waits, where standard error is no terminal."""

import json
import re
import sys
from pathlib import Path

import pytest

from meta_teleport.cli import terminal
from meta_teleport.cli.main import main

TRAIN = ["train", "--training.tasks=4", "--training.window=2", "--training.horizon=4", "--rule=Coordinatewise"]
TRAIN += ["--rule.hidden_size=2", "--task=Functions"]
LINE = re.compile(r"(train|evaluate): (\d+/\d+|\d+%), .+, \d+:\d\d:\d\d left")


class Clock:
    """A clock that goes on by so many seconds whenever it is looked at."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize(("step", "steps"), [(6.0, [2, 4, 6]), (2.0, [5]), (0.5, [])])
def test_training_says_a_line_every_ten_seconds(
    step: float, steps: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "time", Clock(step))
    assert main([*TRAIN, "--out=a", "--training.meta_steps=7"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    lines = captured.err.splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    assert [line.split()[1] for line in lines] == [f"{done}/7," for done in steps]
    for line, done in zip(lines, steps, strict=True):
        seconds = round(step * (7 - done))
        assert line.endswith(f", 0:00:{seconds:02d} left") and "meta-loss" in line and "0 failed" in line


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*TRAIN, "--out=a", "--training.meta_steps=90"]) == 0
    monkeypatch.setattr(terminal, "time", Clock(20.0))
    capsys.readouterr()
    assert main(["train", "--out=a", "--resume", "--training.meta_steps=94"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if LINE.fullmatch(line)]
    assert [line.split()[1] for line in lines] == ["92/94,", "93/94,", "94/94,"]
    assert [line.split(", ")[-1] for line in lines] == ["0:00:40 left", "0:00:20 left", "0:00:00 left"]


def test_an_evaluation_says_what_is_left_of_all_of_it_and_json_stays_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*TRAIN, "--out=a", "--training.meta_steps=1"]) == 0
    monkeypatch.setattr(terminal, "INTERVAL", 0.0)
    capsys.readouterr()
    assert main(["evaluate", "a", "--tasks=4", "--steps=5", "--json"]) == 0
    captured = capsys.readouterr()
    methods = json.loads(captured.out)["methods"]
    lines = captured.err.splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    shares = [int(re.search(r"(\d+)%", line)[1]) for line in lines]
    assert shares == sorted(shares) and shares[-1] == 100 and len(set(shares)) > 10
    named = [line.split(", ")[1].split()[0] for line in lines]
    assert set(named) == {"tuning", *methods}
    tuned = max(share for share, name in zip(shares, named, strict=True) if name == "tuning")
    assert 0 < tuned < 100


def test_what_speaks_to_a_terminal_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_pairs([("a\x1b[2J", "b\x07\u202e\nc"), ("plain", "é")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["a\\x1b[2J", "b\\x07\\u202e", "c"], ["plain", "é"]]


def test_errors_do_not_speak_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "a\x1b[2J"]) == 2
    assert "no run folder a\\x1b[2J" in capsys.readouterr().err
