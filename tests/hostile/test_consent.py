"""What a file asks for and only the person at the keyboard may decide: downloads, folders elsewhere, removals."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from meta_teleport.cli.consent import allows_downloads
from meta_teleport.cli.main import main

SMALL = ["--training.tasks=4", "--training.window=2", "--training.horizon=4", "--training.meta_steps=1"]
RULE = ["--rule=Coordinatewise", "--rule.hidden_size=3"]
MNIST = {"class_path": "Classification", "init_args": {"data": "mnist", "folder": "data", "download": True}}
SPECS = {
    "alone": MNIST,
    "in a mixture": {"class_path": "Mixture", "init_args": {"families": [{"class_path": "Regression"}, MNIST]}},
    "by default": {"class_path": "FewShot", "init_args": {"data": "mnist", "folder": "data"}},
}


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where torchvision would have put its files; nothing is fetched. Tests run in a folder of their own."""
    from torchvision import datasets

    asked: list[Path] = []

    def download(self: Any) -> None:
        asked.append(Path(self.root).resolve())
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets.MNIST, "download", download)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return asked


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


def write(task: dict[str, Any], **others: Any) -> None:
    Path("c.yaml").write_text(json.dumps({"task": task, **others}))


@pytest.mark.parametrize("name", SPECS)
def test_a_config_file_downloads_nothing_until_that_is_typed(
    fetched: list[Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write(SPECS[name])
    command = ["train", "--out=downloads", "--config=c.yaml", *RULE, *SMALL]
    assert "let it be downloaded again (--download)" in refusal(capsys, *command)
    assert fetched == [] and sorted(os.listdir()) == ["c.yaml"]
    assert "no network" in refusal(capsys, *command, "--download")
    assert fetched == [Path("data").resolve()]


@pytest.mark.parametrize("name", SPECS)
def test_a_run_of_a_stranger_downloads_nothing_until_that_is_typed(
    fetched: list[Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["train", "--out=a", "--task.width=3", *RULE, *SMALL]) == 0
    config = json.loads(Path("a/config.json").read_text())
    Path("a/config.json").write_text(json.dumps({**config, "task": SPECS[name]}))
    typed = ["--task=Classification" if name == "in a mixture" else "--task.pixels=4"] if name != "alone" else []
    for command in (["train", "--out=a", "--resume"], ["evaluate", "a", *typed]):
        assert "(--download)" in refusal(capsys, *command)
        assert fetched == []
        assert "no network" in refusal(capsys, *command, "--download")
        assert fetched.pop() == Path("data").resolve()


def test_a_download_elsewhere_is_refused_unless_the_folder_is_typed(
    fetched: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for folder in (str(tmp_path / "elsewhere"), "../elsewhere", "~/elsewhere"):
        write({**MNIST, "init_args": {**MNIST["init_args"], "folder": folder}})
        command = ["train", "--out=a", "--config=c.yaml", "--download", *RULE, *SMALL]
        assert "outside the working directory: name that folder by --task.folder" in refusal(capsys, *command)
        assert fetched == []
    assert "no network" in refusal(capsys, *command, f"--task.folder={tmp_path}/elsewhere")
    assert fetched == [tmp_path / "elsewhere"]


def test_what_is_typed_downloads_as_it_says(fetched: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--out=a", "--task=Classification", "--task.data=mnist", *RULE, *SMALL]
    assert "(--download)" in refusal(capsys, *command)
    assert fetched == []
    assert "no network" in refusal(capsys, *command, "--task.download=true")
    assert len(fetched) == 1


def test_a_config_file_makes_no_folder_elsewhere_and_removes_nothing(
    fetched: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "work/link").symlink_to(tmp_path)
    for out in (str(tmp_path / "elsewhere"), "../elsewhere", "~/elsewhere", "link/elsewhere"):
        write({"class_path": "Regression", "init_args": {"width": 3}}, out=out)
        message = refusal(capsys, "train", "--config=c.yaml", *RULE, *SMALL)
        assert f"a config file sets out to {out}, outside the working directory: give --out yourself" in message
    assert sorted(os.listdir(tmp_path)) == ["work"]
    write({"class_path": "Regression", "init_args": {"width": 3}}, out="a")
    assert main(["train", "--config=c.yaml", *RULE, *SMALL]) == 0
    before = Path("a/rule.safetensors").stat().st_mtime_ns
    write({"class_path": "Regression", "init_args": {"width": 3}}, out="a", overwrite=True)
    assert "a config file says overwrite, which is for you to say" in refusal(capsys, "train", "--config=c.yaml", *RULE)
    assert Path("a/rule.safetensors").stat().st_mtime_ns == before
    assert main(["train", "--config=c.yaml", "--overwrite", *RULE, *SMALL]) == 0


def test_what_speaks_of_downloads() -> None:
    for argv in (["--download"], ["--task.download", "true"], ["--task.download=true"], ["--task", '{"download": 1}']):
        assert allows_downloads(["train", *argv, "--out", "a"])
    for argv in (
        ["--out", "download"],
        ["--out=downloads"],
        ["--import", "download"],
        ["--task", "A", "--out=download"],
    ):
        assert not allows_downloads(["train", *argv])
