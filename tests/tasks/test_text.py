"""Text to model: where it comes from, how it is split, what is refused."""

from pathlib import Path

import pytest
import torch

from meta_teleport.errors import UserError
from meta_teleport.tasks.text import Text, load_text


def folder(path: Path, files: int = 20) -> Path:
    for i in range(files):
        place = path / f"part{i % 3}" / f"{i:02d}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"[{i:02d}]")
    (path / ".hidden").write_text("secret")
    return path


def written(text: Text) -> list[str]:
    return [bytes(part.tolist()).decode() for part in (text.train, text.validation, text.test)]


def test_whole_files_are_held_out(tmp_path: Path) -> None:
    text = load_text(folder(tmp_path / "novel"))
    pieces = [part.split("\n") for part in written(text)]
    assert sorted(name for part in pieces for name in part) == sorted(f"[{i:02d}]" for i in range(20))
    assert [len(part) for part in pieces] == [16, 2, 2]
    assert written(load_text(tmp_path / "novel")) == written(text)
    assert text.name == "novel"


def test_a_single_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("".join(chr(97 + i % 26) for i in range(100)))
    assert [len(part) for part in written(load_text(path))] == [80, 10, 10]
    assert "".join(written(load_text(path))) == path.read_text()


def test_the_standard_library_is_at_hand() -> None:
    text = load_text()
    train, _, test = written(text)
    assert "def __init__(self" in train and "def __init__(self" in test
    assert min(map(len, (train, test))) > 10**5


def test_what_follows_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_bytes(bytes(range(250)))
    text = load_text(path)
    tokens, following = text.batch("train", 64, 5, torch.Generator().manual_seed(0))
    assert tokens.shape == following.shape == (64, 5)
    assert torch.equal(following, tokens + 1)
    assert len(set(tokens[:, 0].tolist())) > 32
    assert torch.equal(tokens, text.batch("train", 64, 5, torch.Generator().manual_seed(0))[0])


@pytest.mark.parametrize("length", [24, 25, 26])
def test_the_longest_piece(tmp_path: Path, length: int) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(range(250)))
    text = load_text(path)  # 25 bytes are held out
    if length < 25:
        assert text.batch("test", 3, length, torch.Generator())[1].shape == (3, length)
    else:
        with pytest.raises(UserError, match="the test part of short has 25 bytes"):
            text.batch("test", 3, length, torch.Generator())


def test_text_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path, reason in (
        (tmp_path / "nowhere", "0 files of text"),
        (folder(tmp_path / "few", 9), "9 files of text"),
        (tmp_path / "empty", "is empty"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            load_text(path)
        assert "\n" not in str(caught.value)
