"""The last three states of a run: what is kept, and what a run goes on from when the newest has gone bad."""

import os
import warnings
from pathlib import Path

import pytest
import torch

from meta_teleport.errors import UserError
from meta_teleport.runs.checkpoint import load_tensors
from meta_teleport.runs.run import Run
from meta_teleport.runs.states import NAMES, load_newest, state_paths


def save(folder: Path, *steps: int) -> None:
    """As a process does that goes on with the run in ``folder``."""
    run = Run(folder, {})
    with warnings.catch_warnings(action="ignore"):
        run.load()
    for step in steps:
        run.save({"a": torch.full((2,), float(step))}, {"meta_step": step})


def kept(folder: Path) -> list[int]:
    return [load_tensors(path)[1]["meta_step"] for path in state_paths(folder)]


def flip(path: Path, bit: int = -10) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_the_last_three_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
    for last in range(1, 6):
        save(tmp_path, last)
        assert kept(tmp_path) == [step for step in (last, last - 1, last - 2) if step > 0]
    assert sorted(os.listdir(tmp_path)) == sorted(NAMES)
    found = load_newest(tmp_path)
    assert found is not None and found.tensors["a"].tolist() == [5.0, 5.0] and found.numbers == {"meta_step": 5}


def test_one_meta_step_counts_once(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 3, 3)
    assert kept(tmp_path) == [3, 2, 1]


@pytest.mark.parametrize("bad", [1, 2])
def test_newer_ones_that_are_damaged_are_named_and_the_next_one_taken(bad: int, tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    for path in state_paths(tmp_path)[:bad]:
        flip(path)
    text = rf"training\.safetensors is damaged .*; going on from training\.{bad}\.safetensors, meta-step {3 - bad}$"
    with pytest.warns(UserWarning, match=text):
        found = load_newest(tmp_path)
    assert found is not None and found.tensors["a"].tolist() == [3.0 - bad] * 2


def test_a_newest_one_that_is_gone_or_cut_off(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    os.truncate(tmp_path / NAMES[0], 20)
    with pytest.warns(UserWarning, match="is cut off.*; going on from training.1.safetensors, meta-step 2"):
        assert load_newest(tmp_path) is not None
    (tmp_path / NAMES[0]).unlink()
    with warnings.catch_warnings(action="error"):
        found = load_newest(tmp_path)
    assert found is not None and found.numbers["meta_step"] == 2
    save(tmp_path, 3)
    assert kept(tmp_path) == [3, 2, 1]


def test_no_good_one_makes_way_for_a_damaged_one(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    flip(tmp_path / NAMES[0])
    save(tmp_path, 3)
    assert kept(tmp_path) == [3, 2, 1]
    os.truncate(tmp_path / NAMES[0], 20)
    save(tmp_path, 4)
    assert kept(tmp_path) == [4, 2, 1]


def test_none_that_can_be_read_is_a_refusal(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for path in state_paths(tmp_path):
        flip(path)
    with pytest.raises(UserError, match=r"no saved state of .* can be read: .*training.safetensors is damaged"):
        load_newest(tmp_path)


@pytest.mark.parametrize(
    ("operation", "nth"), [("replace", 1), ("replace", 2), ("replace", 3), ("fsync", 1), ("fsync", 2)]
)
def test_a_failed_save_leaves_all_that_were_there(
    operation: str, nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2, 3)
    real, count = getattr(os, operation), 0

    def fail(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count == nth:
            raise OSError(5, "Input/output error")
        real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot be written .Input/output error."):
        patch.setattr(os, operation, fail)
        save(tmp_path, 4)
    assert kept(tmp_path) == ([3, 2, 1] if (operation, nth) in (("replace", 1), ("fsync", 1)) else [3, 2])
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
