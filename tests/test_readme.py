"""Every command and every Python snippet of the README runs, on small settings and in the order of the text."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import meta_teleport as mt

README = (Path(__file__).parents[1] / "README.md").read_text()
SMALL = {
    "train": ["--training.meta_steps", "2", "--training.tasks", "4", "--training.horizon", "10"],
    "evaluate": ["--tasks", "4", "--steps", "12"],
    "info": [],
    "symmetries": ["--json"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = "".join(blocks("sh")).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("meta-teleport ")]


def test_the_readme_has_what_is_tested_here() -> None:
    assert {command[0] for command in commands()} == set(SMALL)
    assert len(blocks("python")) >= 2


def run_commands(folder: Path, small: bool) -> None:
    for command in commands():
        program = [sys.executable, "-m", "meta_teleport", *command, *(SMALL[command[0]] if small else [])]
        result = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"


def run_snippets() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(re.sub(r"tasks=\d+", "tasks=4", block), "README.md", "exec"), names)
    return names


def test_commands_and_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_commands(tmp_path, small=True)
    assert len(list((tmp_path / "runs/small").glob("evaluation-*.json"))) == 1
    monkeypatch.chdir(tmp_path)
    names = run_snippets()
    tasks, moved, step = names["tasks"], names["moved"], names["step"]
    assert ((tasks.loss(moved.params, step) / tasks.loss(tasks.params, step) - 1).abs() < 1e-9).all()
    assert (moved.after > moved.before).all()
    teleports = names["optimizer"].teleports
    assert [record.step for record in teleports] == [0]
    assert all(record.drift < 1e-4 for record in teleports) and any(record.accepted for record in teleports)
    assert mt.verify(names["model"], names["symmetry"], names["x"]) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["balanced", "gradient_norm"])
@pytest.mark.parametrize("seed", range(3))
def test_the_first_example_does_no_harm_in_two_thousand_steps(objective: str, seed: int) -> None:
    def end(schedule: str, bounds: str = "imbalance=4.0") -> float:
        block = (
            blocks("python")[0]
            .replace("range(300)", "range(2000)")
            .replace('"balanced", [0],', f'"{objective}", {schedule},')
        )
        names: dict[str, Any] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            exec(compile(block.replace("batches=", f"{bounds}, batches="), "README.md", "exec"), names)
        assert len(names["optimizer"].teleports) == (20 if schedule == "100" else 0)
        return float(names["value"].detach())

    plain = end("()")
    assert end("100") < 1.1 * plain
    if objective == "gradient_norm":
        assert not end("100", "imbalance=float('inf'), patience=float('inf')") < 1e3 * plain


@pytest.mark.slow
def test_commands_run_as_written(tmp_path: Path) -> None:
    run_commands(tmp_path, small=False)
    contents = [json.loads(path.read_text()) for path in (tmp_path / "runs/small").glob("evaluation-*.json")]
    (methods,) = [content["methods"] for content in contents if content["steps"] == 300]
    learned = methods["lstm-update-tele"]
    assert learned["failed"] == 0
    assert len(learned["median"]) == 301
    assert learned["median"][-1] < 1e-2 * learned["median"][0]
    assert learned["drift_max"] <= 1e-4


def test_targets_of_the_readme_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z]+)", "".join(blocks("sh"))) + re.findall(r"`make ([a-z]+)`", README))
    assert {"train", "test", "verify"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3))
def test_the_first_example_goes_on_for_20_000_steps_as_the_optimizer_would_alone(seed: int) -> None:
    """The geometric mean of ratios of means over 2000 steps each, until what is left is rounding of the loss, which is
    of the order of eps times the logits."""
    program = blocks("python")[0].replace("range(300)", "range(20_000)")
    program = program.replace("    value.backward()\n", "    value.backward()\n    losses.append(value.detach())\n")
    alone = re.sub(r"optimizer = mt\.TeleportedOptimizer.*", "optimizer = adam", program)
    alone = re.sub(r" *optimizer\.report.*\n|print.*\n", "", alone)
    assert alone.count("adam") == 2 and "range(20_000)" in alone and "losses.append" in alone

    def trained(code: str) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            names: dict[str, Any] = {"losses": []}
            exec(compile(code, "README.md", "exec"), names)
        return torch.stack(names["losses"]).view(10, 2000).double().mean(1)

    rounding = 20 * torch.finfo(torch.float32).eps
    plain, teleported = trained(alone), trained(program)
    above = plain > rounding
    assert int(above.sum()) >= 3 and bool((teleported[~above] < 2 * rounding).all())
    assert float((teleported / plain)[above].log().mean().exp()) <= 1.02
