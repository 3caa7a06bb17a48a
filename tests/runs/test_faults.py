"""Nothing of a run is lost to faults at file operations, to kills at any moment, or to a second process.

Each test is one run of ``tests/fault_points.py``, which trains for real and compares, to the bit, with a training that
nothing has happened to. A fault at every single operation is for the night.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from file_faults import FAULTS

SCENARIOS = ("begin", "resume", "overwrite")
PROGRAM = Path(__file__).parents[1] / "fault_points.py"


def played(folder: Path, *arguments: str) -> int:
    """How many points were played, without a loss at any of them."""
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    command = [sys.executable, str(PROGRAM), str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    count, words = done.stdout.splitlines()[-1].split(" ", 1)
    assert words.startswith("played, 0 with a loss")
    return int(count)


@pytest.mark.slow
def test_faults_at_five_operations(tmp_path: Path) -> None:
    assert played(tmp_path, "points", "5", "20240507") == 5


@pytest.mark.slow
def test_five_kills_at_random_moments(tmp_path: Path) -> None:
    assert played(tmp_path, "kills", "5", "20240507") == 5


@pytest.mark.slow
def test_a_second_process_is_refused_whatever_the_first_one_does(tmp_path: Path) -> None:
    assert played(tmp_path, "together") == 9


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_fault_at_every_operation(scenario: str, fault: str, tmp_path: Path) -> None:
    assert played(tmp_path, "scenario", scenario, fault) > 40


@pytest.mark.slow
@pytest.mark.nightly
def test_a_hundred_kills_at_random_moments(tmp_path: Path) -> None:
    assert played(tmp_path, "kills", "100", "20240507") == 100
