"""Takes every hostile file and folder through every command and function that reads one, in one process, and says what
happened: ``python -m hostile.audit GOOD PLACE`` (from ``tests/``), GOOD a run, PLACE an empty folder.

An audit hook sees what Python does meanwhile: imports and programs of the stranger, files written outside the folder,
connections, other processes, what is unpickled.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostile.cases import MARK, write_files, write_folders

import meta_teleport as mt
from meta_teleport.cli.main import main
from meta_teleport.evaluation.methods import BASELINES, Baseline
from meta_teleport.learned.serialization import trained_config
from meta_teleport.rules.classical import Adam
from meta_teleport.runs.files import UNPICKLED

SECONDS = 60
"""A call that takes longer hangs."""
SMALL = ["--training.tasks=3", "--training.window=2", "--training.horizon=4", "--training.meta_steps=1"]
RULE = ["--rule=Coordinatewise", "--rule.hidden_size=3"]
PATHS = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
NEVER = ("socket.connect", "socket.getaddrinfo", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn")
STRANGE = ("own_payload", "stranger", "training")
CONFIG, RULE_FILE, STATE, METRICS, TUNED = (
    "config.json",
    "rule.safetensors",
    "training.safetensors",
    "metrics",
    "tuning",
)
READS = {
    "info": "",
    "info --json": ("evaluation", CONFIG),
    "trained_config": (CONFIG, RULE_FILE),
    "load": (CONFIG, RULE_FILE),
    "evaluate": (CONFIG, RULE_FILE, TUNED),
    "evaluate a rule": (RULE_FILE,),
    "mt.evaluate": (TUNED,),
    "train --config": (CONFIG,),
    "train --resume": (CONFIG, STATE, METRICS),
    "mt.train": (CONFIG, STATE, METRICS),
}
"""What each call reads of a run, by how the names of files begin."""
Call = Callable[[], Any]


class Watch:
    """What has been done that must not be, while ``allowed`` says where may be written."""

    def __init__(self, place: Path) -> None:
        self.place, self.allowed, self.seen = str(place), (), []
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.allowed and self._is_bad(event, args):
            self.seen.append(f"{event} {args!r:.200}")

    def _is_bad(self, event: str, args: tuple[Any, ...]) -> bool:
        if event == "import":
            return str(args[0]).split(".")[0] in STRANGE
        if event == "exec":
            return str(getattr(args[0], "co_filename", "")).startswith(self.place)
        if event == "open":
            path, mode, flags = args
            writes = set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            return bool(writes) and self._is_outside(path)
        if event == "pickle.find_class":
            return (args[0].replace("numpy.core", "numpy._core"), args[1]) not in UNPICKLED
        if event == "subprocess.Popen":
            return args[0] != "git"
        return event in NEVER or (event in PATHS and self._is_outside(args[0]))

    def _is_outside(self, path: Any) -> bool:
        if isinstance(path, int) or os.fspath(path) == os.devnull:
            return False
        real = os.path.realpath(os.fsdecode(path))
        return not any(real == root or real.startswith(root + os.sep) for root in self.allowed)


def run_calls(folder: Path, good: Path, family: mt.TaskFamily) -> Iterator[tuple[str, Call]]:
    """Every way to read a run, those that change it last."""
    name, new = str(folder), f"{folder}-new"
    few = ["--tasks=3", "--steps=2", "--seed=1", "--horizon=2"]
    settings = mt.TrainingConfig(3, 3, window=2, horizon=4)
    yield "info", lambda: main(["info", name])
    yield "info --json", lambda: main(["info", name, "--json"])
    yield "trained_config", lambda: trained_config(folder)
    yield "load", lambda: mt.load(folder)
    yield "evaluate", lambda: main(["evaluate", name, *few])
    yield "evaluate a rule", lambda: main(["evaluate", f"{name}/rule.safetensors", "--out", new, *few])
    yield "mt.evaluate", lambda: mt.evaluate(None, family, horizon=2, tasks=2, steps=2, folder=folder)
    yield "train --config", lambda: main(["train", "--out", new, "--config", f"{name}/config.json", *SMALL])
    yield "train --resume", lambda: main(["train", "--out", name, "--resume", "--training.meta_steps=3"])
    yield (
        "mt.train",
        lambda: mt.train(mt.load(good), family, settings, run=mt.Run.open(folder), resume=True),
    )


def file_calls(path: Path) -> Iterator[tuple[str, Call]]:
    """Every way to read a config file or images."""
    new = f"{path}-new"
    if path.suffix == ".yaml":
        yield "train --config", lambda: main(["train", "--config", str(path), *RULE, *SMALL])
        yield "train --config --out", lambda: main(["train", "--out", new, "--config", str(path), *RULE, *SMALL])
        return
    data = [f"--task.data={path}", "--task.hidden=[2]", "--task.batch=2", *RULE, *SMALL]
    yield "load_images", lambda: mt.load_images(path)
    yield "train --task", lambda: main(["train", "--out", new, "--task=Classification", *data])
    yield "Classification", lambda: mt.Classification(str(path), hidden=(2,), batch=2)
    yield "FewShot", lambda: mt.FewShot(str(path), hidden=(2,), ways=2, shots=1, queries=1)


def faults_of(call: Call) -> tuple[bool, list[str]]:
    """Whether a call was refused, and what was wrong with how it was."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = call()
            code = found if isinstance(found, int) else 0
    except mt.UserError as error:
        return True, ["lines"] * ("\n" in str(error) or len(str(error)) > 1000)
    except SystemExit as end:
        return True, [f"exit {end.code}: {err.getvalue()[-200:]}"]
    except BaseException:
        return True, [" | ".join(traceback.format_exc().splitlines()[-4:])]
    lines = err.getvalue().splitlines()
    said = [line for line in lines if line.startswith("meta-teleport: error: ")]
    wrong = [f"exit code {code}"] * (code not in (0, 2))
    wrong += [f"not one line of error at the end: {lines}"] * (code == 2 and (len(said) != 1 or lines[-1] != said[0]))
    wrong += ["control codes"] * any(not (c.isprintable() or c == "\n") for c in out.getvalue() + err.getvalue())
    return code == 2, wrong


def alarm(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def audit(good: Path, place: Path) -> dict[str, Any]:
    """What happened: ``faults`` by case and call, what was ``seen`` of the stranger's programs, memory, refusals."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, alarm)
    BASELINES.clear()
    BASELINES["adam"] = Baseline(Adam, {"lr": [0.01, 0.1]})
    family, watch = mt.Regression(3), Watch(place)
    state = os.environ["XDG_STATE_HOME"]
    files, runs = write_files(place), write_folders(good, place)
    cases = {name: list(file_calls(path)) for name, path in files.items()}
    for case, (file, path) in runs.items():
        cases[case] = [(name, call) for name, call in run_calls(path, good, family) if file.startswith(READS[name])]
    places = {**files, **{case: path for case, (_, path) in runs.items()}}
    os.chdir(place)
    sys.path.insert(0, str(place))  # where Python would find the stranger's modules
    for name, call in run_calls(shutil.copytree(good, place / "good"), good, family):
        outcome = faults_of(call)
        shutil.rmtree(place / "good-new", ignore_errors=True)
        assert outcome == (False, []), f"the run that is broken must be whole: {name} {outcome}"
    found: dict[str, Any] = {"faults": {}, "seen": {}, "refused": {}, "megabytes": {}, "seconds": {}}
    for case, calls in cases.items():
        before, began = megabytes(), time.perf_counter()
        folder = str(places[case])
        for name, call in calls:
            watch.allowed = (*([folder] if case in runs else []), f"{folder}-new", state)
            signal.alarm(SECONDS)
            refused, wrong = faults_of(call)
            signal.alarm(0)
            watch.allowed = ()
            shutil.rmtree(f"{folder}-new", ignore_errors=True)
            if refused:
                found["refused"].setdefault(case, []).append(name)
            if os.path.lexists(place / MARK):
                wrong.append("EXECUTED")
                os.rmdir(place / MARK)
            if wrong:
                found["faults"][f"{case} / {name}"] = wrong
            if watch.seen:
                found["seen"][f"{case} / {name}"], watch.seen = watch.seen, []
        print(case, f"{time.perf_counter() - began:.1f} s, {megabytes() - before:.0f} MB", file=sys.stderr, flush=True)
        found["megabytes"][case], found["seconds"][case] = megabytes() - before, time.perf_counter() - began
    return {**found, "cases": list(cases)}


if __name__ == "__main__":
    print(json.dumps(audit(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())))
