"""A program: a small real training meets a fault at file operations, and is then resumed: see runs/test_faults.py.

    python fault_points.py FOLDER scenario NAME FAULT    a fault at every file operation
    python fault_points.py FOLDER points COUNT SEED      so many of all pairs of operation and fault, drawn from SEED
    python fault_points.py FOLDER kills COUNT SEED       kills at random moments
    python fault_points.py FOLDER together               a second process comes while the first one trains

prints a line for each at which something was lost. All are played in forks of this process, which has imported and run
everything before.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from file_faults import FAULTS, FaultyFiles  # noqa: E402

from meta_teleport.cli.main import PROGRAM, main  # noqa: E402
from meta_teleport.runs.states import load_newest  # noqa: E402

STEPS = 4
STOPPED = 3
"""After so many of them the run that is resumed had been stopped."""
FLAGS = ["--training.tasks=2", "--training.window=1", "--training.horizon=2", "--rule=Coordinatewise"]
FLAGS += [
    "--rule.hidden_size=2",
    "--task.width=2",
    "--training.log_every=1",
    "--training.save_every=1",
    f"--training.decay_steps={STEPS}",
]


def train(folder: Path, *flags: str) -> int:
    return main(["train", f"--out={folder}", *(FLAGS if "--resume" not in flags else []), *flags])


def begin(folder: Path, *flags: str) -> int:
    return train(folder, f"--training.meta_steps={STEPS}", *flags)


def resume(folder: Path) -> int:
    """What somebody does who finds the folder."""
    return train(folder, "--resume") if (folder / "config.json").exists() else begin(folder)


def begin_anew(folder: Path) -> int:
    return begin(folder, "--overwrite")


SCENARIOS: dict[str, tuple[str, Callable[[Path], int]]] = {
    "begin": ("nothing", begin),
    "resume": ("stopped", resume),
    "overwrite": ("other", begin_anew),
}
"""What is there before, and what is done."""


def forked(work: Callable[[], int], log: Path) -> int:
    """What ``work`` returned in a process of its own; less than 0 if that was killed. All that it says goes to
    ``log``."""
    return os.waitstatus_to_exitcode(os.waitpid(started(work, log), 0)[1])


def started(work: Callable[[], int], log: Path) -> int:
    """The number of a process that does ``work``."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(said, 1)
        os.dup2(said, 2)
        code = 1
        try:
            code = work()
        except MemoryError:
            code = 3
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def is_refusal(said: str) -> bool:
    """Whether a process said one line about what is wrong; it may have told its progress before."""
    *progress, line = said.splitlines()
    return line.startswith(f"{PROGRAM}: error: ") and all(other.startswith("train: ") for other in progress)


def content(folder: Path) -> dict[str, object]:
    """What must be equal, to the bit: the names of all files, the config, rule and states, and the metrics but for the
    speed."""
    names = [path.name for path in folder.iterdir()]
    files: dict[str, object] = {name: (folder / name).read_bytes() for name in names if name.endswith("safetensors")}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{**row, "task_steps_per_second": None} for row in rows]
    return {
        "names": sorted(names),
        **files,
        "metrics": metrics,
        "config": json.loads((folder / "config.json").read_text()),
    }


class Points:
    """The scenarios in ``folder``, each as it goes without a fault."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        (folder / "nothing").mkdir()
        whole, other, stopped = (folder / name / "run" for name in ("whole", "other", "stopped"))
        assert forked(lambda: begin(whole), self.log) == 0, self.log.read_text()
        assert forked(lambda: begin(other, "--seed=1"), self.log) == 0, self.log.read_text()
        assert forked(lambda: train(stopped, f"--training.meta_steps={STOPPED}"), self.log) == 0
        config = json.loads((stopped / "config.json").read_text())
        config["training"]["meta_steps"] = STEPS
        (stopped / "config.json").write_text(json.dumps(config))
        self.whole, self.other = content(whole), content(other)

    def count(self, scenario: str) -> int:
        """The operations of a scenario, which ends as it should."""
        before, do = SCENARIOS[scenario]

        def work() -> int:
            files = FaultyFiles(self.folder / "now")
            code = do(self.folder / "now/run")
            (self.folder / "count").write_text(str(files.count))
            return code

        shutil.copytree(self.folder / before, self.folder / "now")
        assert forked(work, self.log) == 0, self.log.read_text()
        assert content(self.folder / "now/run") == self.whole, scenario
        shutil.rmtree(self.folder / "now")
        return int((self.folder / "count").read_text())

    def play(self, scenario: str, fault: str, nth: int) -> str:
        """What was lost by a fault at the ``nth`` operation of a scenario; empty if all is well."""
        before, do = SCENARIOS[scenario]
        now, run = self.folder / "now", self.folder / "now/run"

        def work() -> int:
            FaultyFiles(now, nth, fault)
            return do(run)

        def after() -> int:
            if scenario != "overwrite":
                return resume(run)
            if (run / "config.json").exists() and resume(run) == 0 and content(run) not in (self.whole, self.other):
                raise AssertionError("what was half removed was resumed to something else")
            return begin_anew(run)

        shutil.copytree(self.folder / before, now)
        try:
            code, said = forked(work, self.log), self.log.read_text()
            if code not in {"kill": (-9,), "power": (-9,), "MemoryError": (0, 3)}.get(fault, (0, 2)):
                return f"ended with {code}: {said}"
            if code == 2 and not is_refusal(said):
                return f"said {said}"
            if lost := self._lost(run):
                return lost
            if forked(after, self.log) != 0:
                return f"was not resumed: {self.log.read_text()}"
            found = content(run)
            return " and ".join(f"{key} differ" for key in self.whole if found.get(key) != self.whole[key])
        finally:
            shutil.rmtree(now, ignore_errors=True)

    def _lost(self, run: Path) -> str:
        """Progress that was lost: the newest state is at most one meta-step behind the metrics, and never ahead."""
        if not (run / "metrics.jsonl").exists() or not (run / "training.safetensors").exists():
            return ""
        rows = [line for line in (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1] if line]
        found = load_newest(run)
        assert found is not None
        step = found.numbers["meta_step"]
        return "" if step <= len(rows) <= step + 1 else f"state {step} and {len(rows)} rows"

    def points(self, names: Iterable[str], faults: Iterable[str]) -> list[tuple[str, str, int]]:
        """All pairs of operation and fault."""
        return [(name, fault, n) for name in names for n in range(1, self.count(name) + 1) for fault in faults]

    def kill(self, moment: float) -> str:
        """What was lost by a kill after ``moment`` seconds of a training; "-" if it was over by then."""
        folder = self.folder / "now"
        child, ended = started(lambda: begin(folder), self.log), 0
        over = time.monotonic() + moment
        while time.monotonic() < over and not ended:
            ended, _ = os.waitpid(child, os.WNOHANG)
        if ended:
            shutil.rmtree(folder)
            return "-"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        try:
            if lost := self._lost(folder):
                return lost
            if forked(lambda: resume(folder), self.log) != 0:
                return f"was not resumed: {self.log.read_text()}"
            return "" if content(folder) == self.whole else "differs"
        finally:
            shutil.rmtree(folder)

    def together(self, scenario: str, second: Callable[[Path], int]) -> str:
        """What went wrong where ``second`` came to the folder in the middle of a scenario."""
        before, first = SCENARIOS[scenario]
        now, run, middle = self.folder / "now", self.folder / "now/run", self.count(scenario) // 2
        shutil.copytree(self.folder / before, now)

        def work() -> int:
            FaultyFiles(now, middle, "stop")
            return first(run)

        child = started(work, self.log)
        os.waitpid(child, os.WUNTRACED)
        code, said = forked(lambda: second(run), self.folder / "second"), (self.folder / "second").read_text()
        os.kill(child, signal.SIGCONT)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = content(run)
        shutil.rmtree(now)
        refusal = "is not empty" if second is begin else f"is in use by process {child} on"
        if code != 2 or not is_refusal(said) or refusal not in said:
            return f"the second ended with {code}: {said}"
        return "" if ended == 0 and found == self.whole else f"the first ended with {ended}: {self.log.read_text()}"


def run(folder: Path, what: str, *arguments: str) -> int:
    began = time.monotonic()
    begin(folder / "warm")
    played = Points(folder)
    lost: dict[object, str] = {}
    if what == "together":
        pairs = [(scenario, second) for scenario in SCENARIOS for second in (begin, begin_anew, resume)]
        lost = {f"{first} and {second.__name__}": played.together(first, second) for first, second in pairs}
    elif what == "kills":
        moments, start = random.Random(int(arguments[1])), time.monotonic()
        forked(lambda: begin(folder / "timed"), played.log)
        took = time.monotonic() - start
        while len(lost) < int(arguments[0]):
            moment = took * moments.random()
            if (found := played.kill(moment)) != "-":
                lost[len(lost), moment] = found
    else:
        points = played.points(*([arguments[0]], [arguments[1]]) if what == "scenario" else (SCENARIOS, FAULTS))
        if what == "points":
            points = random.Random(int(arguments[1])).sample(points, int(arguments[0]))
        lost = {point: played.play(*point) for point in points}
    for point, found in lost.items():
        if found:
            print(f"{point}: {found}")
    bad = sum(map(bool, lost.values()))
    print(f"{len(lost)} played, {bad} with a loss, {time.monotonic() - began:.0f} s")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]).resolve(), *sys.argv[2:]))
