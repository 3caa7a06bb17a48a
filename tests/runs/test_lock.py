"""One process at a time: who else comes is told who has the folder, and nobody has it when that process is gone."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from meta_teleport.errors import UserError
from meta_teleport.runs.lock import Lock
from meta_teleport.runs.run import Run

CONFIG = {"task": {}, "rule": {}, "training": {}, "seed": 0, "dtype": "float32"}
HOLDER = """
import os, sys, time
from pathlib import Path
from meta_teleport.runs.lock import Lock
lock = Lock(Path(sys.argv[1]))
if sys.argv[2] == "fork" and os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
if sys.argv[2] == "alone":
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def holder(folder: Path, how: str) -> tuple[subprocess.Popen[str], int]:
    """A process that has the lock of ``folder`` and, if it forks, the number of its child."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_another_process_is_told_who_has_the_folder_and_a_kill_gives_it_back(tmp_path: Path) -> None:
    process, number = holder(tmp_path, "alone")
    words = f"is in use by process {number} on '{socket.gethostname()}' since '20"
    with pytest.raises(UserError, match=re.escape(words)):
        Lock(tmp_path)
    killed(process)
    Lock(tmp_path).release()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_children_of_a_process_that_was_killed_do_not_keep_its_lock(tmp_path: Path) -> None:
    process, child = holder(tmp_path, "fork")
    with pytest.raises(UserError, match=f"is in use by process {process.pid} on"):
        Lock(tmp_path)
    process.kill()
    process.wait()
    Lock(tmp_path).release()
    os.kill(child, signal.SIGKILL)
    killed(process)


def test_the_same_process_is_refused_too_until_the_lock_is_released_or_forgotten(tmp_path: Path) -> None:
    first = Lock(tmp_path)
    with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on"):
        Lock(tmp_path)
    first.release()
    first.release()
    second = Lock(tmp_path)
    del second
    Lock(tmp_path).release()


def test_an_owner_that_cannot_be_read_is_another_process(tmp_path: Path) -> None:
    first = Lock(tmp_path)
    for content in ("", "{", "[]", '{"pid": "x"}'):
        (tmp_path / "lock").write_text(content)
        with pytest.raises(UserError, match="is in use by another process: wait for it to end"):
            Lock(tmp_path)
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "\x1b[2J\n", "since": ""}))
    with pytest.raises(UserError) as caught:
        Lock(tmp_path)
    assert str(caught.value).isprintable()
    first.release()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="lock cannot be written"):
        Lock(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="file system without locks: train one run at a time"):
        Lock(tmp_path).release()


def test_two_that_begin_or_begin_anew_at_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    run = Run.create(folder, CONFIG)
    for overwrite, message in ((False, "is not empty: choose another --out"), (True, "is in use by process")):
        with pytest.raises(UserError, match=message):
            Run.create(folder, CONFIG, overwrite=overwrite)
    with pytest.raises(UserError, match="is in use by process"):
        Run.open(folder, lock=True)
    assert Run.open(folder).config == run.config
    run.close()
    Run.create(folder, {**CONFIG, "seed": 1}, overwrite=True).close()
    assert Run.open(folder, lock=True).config["seed"] == 1


def test_a_folder_that_another_process_is_just_making(tmp_path: Path) -> None:
    process, number = holder(tmp_path, "alone")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"is in use by process {number}"):
            Run.create(tmp_path, CONFIG, overwrite=overwrite)
    assert os.listdir(tmp_path) == ["lock"]
    killed(process)
    Run.create(tmp_path, CONFIG).close()


RACE = """
import sys, time
from meta_teleport.errors import UserError
from meta_teleport.runs.run import Run
print("ready", flush=True)
sys.stdin.readline()
try:
    config = {"task": {}, "rule": {}, "training": {}, "seed": int(sys.argv[2]), "dtype": "float32"}
    run = Run.create(sys.argv[1], config)
except UserError as error:
    print(error, flush=True)
else:
    print("made", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_of_many_that_begin_at_once_one_does(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path / "a")]
    racers = [
        subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(3)
    ]
    said = []
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.close()
    for racer in racers:
        assert racer.stdout is not None
        said.append(racer.stdout.readline().strip())
    for racer in racers:
        killed(racer)
    assert said.count("made") == 1
    assert Run.open(tmp_path / "a").config["seed"] == said.index("made")
    assert all("is in use by" in words or "is not empty" in words for words in said if words != "made")
