"""Seals are those of one user on one machine."""

import os
from pathlib import Path

import pytest

from meta_teleport.runs.seal import is_sealed, seal


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def test_a_seal_is_of_its_content_and_of_its_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = seal({"a": [1, 2.5], "b": None})
    assert mark is not None and mark == seal({"b": None, "a": [1, 2.5]})
    assert is_sealed({"a": [1, 2.5], "b": None}, mark) and not is_sealed({"a": [1, 2.5], "b": 0}, mark)
    assert not any(is_sealed({}, other) for other in (None, 3, "", "é", mark))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "other"))
    assert not is_sealed({"a": [1, 2.5], "b": None}, mark)


def test_the_key_is_its_owners_alone(home: Path) -> None:
    seal({})
    key = home / "meta_teleport/key"
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 32
    mark = seal({})
    key.chmod(0o644)
    assert seal({}) is None and not is_sealed({}, mark)


def test_without_a_key_nothing_is_sealed_and_nothing_believed(home: Path) -> None:
    mark = seal({})
    key = home / "meta_teleport/key"
    key.rename(home / "kept")
    for put in (
        lambda: key.write_bytes(b""),
        lambda: key.symlink_to(home / "kept"),
        lambda: os.mkfifo(key, 0o600),
        lambda: key.mkdir(0o700),
    ):
        put()
        assert seal({}) is None and not is_sealed({}, mark)
        key.rmdir() if key.is_dir() else key.unlink()
