"""The command line of the image experiments: what a user got wrong is one line and exit code 2, and nothing has run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.lab.progress import Stopped
from experiments.lab.script import FAILED, STOPPED, image_parser, images_of, run


def loaded(*flags: str) -> None:
    def main() -> None:
        images_of(image_parser("images", None, ["digits"], 3).parse_args(list(flags)))

    run(main)


@pytest.fixture(autouse=True)
def small_numbers() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    x, y = np.zeros((12, 4, 4), np.uint8), np.arange(12) % 2
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.raises(SystemExit) as stop:
        loaded(*flags)
    assert stop.value.code == FAILED
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
    return error


def test_data_that_is_not_there(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(npz / "out")]
    assert "unknown data set 'mnits'" in refused(capsys, "--data", "mnits", *out)
    assert "there is no file" in refused(capsys, "--data", str(npz / "none.npz"), *out)
    missing = refused(capsys, "--data", "mnist", "--no-download", "--data-folder", str(npz), *out)
    assert "MNIST in" in missing and "missing or damaged" in missing
    assert not (npz / "out").exists()


def test_two_files_of_one_name(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(npz / folder / "own.npz") for folder in ("a", "b")]
    assert "have the same name: rename one" in refused(capsys, "--data", *files, "--out", str(npz / "out"))


def test_a_folder_that_cannot_be_made(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (npz / "file").write_text("")
    assert "cannot be made" in refused(capsys, "--out", str(npz / "file" / "out"))


def test_good_data_and_a_stop(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded("--data", str(npz / "a" / "own.npz"), "--out", str(npz / "out"))
    assert (npz / "out").is_dir()

    def stopped() -> None:
        raise Stopped("stopped after epoch 3")

    with pytest.raises(SystemExit) as stop:
        run(stopped)
    assert stop.value.code == STOPPED
    assert capsys.readouterr().err == "stopped after epoch 3\n"
