"""Deliberate changes of the code, each of which must make the tests fail that are named beside it.

    python tests/mutations.py [--only TEXT] [-j N]

``mutations.yaml`` lists them. Every change is made in a copy of the tree of its own, which the tests import instead of
the installed package. A change is caught if every test named fails by an assertion, not by an error. Exits with 1 if
one is not caught, or if the tests do not pass without any.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PARTS = ("meta_teleport", "experiments", "tests", "pyproject.toml", "setup.cfg")
LEFT_OUT = shutil.ignore_patterns("results", "__pycache__")
LIMIT = 300  # seconds for the tests of one change


def copied(root: Path, to: Path) -> Path:
    """A copy of the tree at ``root``, whose package is the one that Python imports by PYTHONPATH alone (-P)."""
    for part in PARTS:
        if (root / part).is_dir():
            shutil.copytree(root / part, to / part, ignore=LEFT_OUT)
        else:
            shutil.copy(root / part, to / part)
    found = run(to, "-P", "-c", "import importlib.util as u; print(u.find_spec('meta_teleport').origin)").stdout.strip()
    if not Path(found).resolve().is_relative_to(to.resolve()):
        raise SystemExit(f"the tests would import {found}, not the copy in {to}")
    return to


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the copied tree, with at most LIMIT seconds."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "1000", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT)


def tested(tree: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    return run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)


def verdict(root: Path, mutation: dict[str, Any]) -> str:
    """Either "caught", or why it is not."""
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(root, Path(folder))
        file = tree / mutation["file"]
        text = file.read_text()
        if text.count(mutation["change"]) != 1:
            return f"SURVIVED: its text stands {text.count(mutation['change'])} times in the file"
        file.write_text(text.replace(mutation["change"], mutation["to"]))
        try:
            result = tested(tree, mutation["tests"])
        except subprocess.TimeoutExpired:
            return f"SURVIVED: its tests took longer than {LIMIT} seconds"
    if result.returncode != 1:
        return f"SURVIVED: pytest exits with {result.returncode}"
    for test in mutation["tests"]:
        failures = re.findall(rf"^FAILED {re.escape(test)}\b.*? - (.*)$", result.stdout, re.MULTILINE)
        if not failures:
            return f"SURVIVED: {test} passes"
        if not any(re.match(r"assert\b|AssertionError|Failed: ", reason) for reason in failures):
            return f"SURVIVED: {test} fails, but by {failures[0]}"
    return "caught"


def main(arguments: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="the changes whose file or text contains TEXT")
    parser.add_argument("-j", type=int, default=1, metavar="N", help="how many at a time")
    options = parser.parse_args(arguments)
    mutations = yaml.safe_load((root / "tests" / "mutations.yaml").read_text())
    chosen = [m for m in mutations if options.only in f"{m['file']} {m['change']} {m['to']}"]
    if not chosen:
        raise SystemExit(f"no change contains '{options.only}'")
    with tempfile.TemporaryDirectory() as folder:
        result = tested(copied(root, Path(folder)), sorted({test for m in chosen for test in m["tests"]}))
    if result.returncode:
        raise SystemExit(f"the tests do not pass without any change:\n{result.stdout}{result.stderr}")
    began, survived = time.monotonic(), 0
    with ThreadPoolExecutor(options.j) as pool:
        waiting = {pool.submit(verdict, root, mutation): mutation for mutation in chosen}
        for done, future in enumerate(as_completed(waiting), 1):
            mutation, said = waiting[future], future.result()
            survived += said != "caught"
            left = (time.monotonic() - began) / done * (len(chosen) - done)
            change = f"{mutation['file']}: {mutation['change'].strip()} -> {mutation['to'].strip()}"
            print(f"{done}/{len(chosen)} {change}: {said} ({left:.0f} s left)", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} caught")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
