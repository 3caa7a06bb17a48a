"""Tables, figures and JSON of held_out.py from what is finished."""

from pathlib import Path
from typing import Any

import torch

from experiments.held_out.bench import Bench, bench_of
from experiments.held_out.clock import paced, seconds_of
from experiments.held_out.entries import BEYOND
from experiments.held_out.families import FAMILIES
from experiments.held_out.figure import plot
from experiments.held_out.goals import goals
from experiments.held_out.recipes import RECIPES
from experiments.held_out.rules import KINDS, folder_of
from experiments.held_out.runs import Outcome
from experiments.held_out.statistics import Curves, against, median, numbers
from experiments.held_out.tables import markdown
from experiments.lab.meta_training import FINISHED
from experiments.lab.script import save_figure
from meta_teleport.runs.run import provenance, read_json, write_json


def report(out: Path, family: str, seeds: int, smoke: bool) -> str:
    """Writes ``held_out-<family>.json``, ``.md``, ``.png`` and ``.pdf`` into ``out``; the table as text."""
    rows: dict[str, dict[str, Any]] = {}
    shown: dict[str, Curves] = {}
    for member in FAMILIES[family].members:
        bench = bench_of(out, family, member, smoke)
        curves = outcomes(bench, seeds)
        if "rule" not in curves:
            continue
        rows[member.name] = member_row(bench, curves)
        if member.methods == "all":
            shown[member.name] = curves
    content = {
        "family": family,
        "title": FAMILIES[family].title,
        "horizon": FAMILIES[family].horizon,
        "smoke": smoke,
        "meta_training": {kind: meta_training(out, family, kind, seeds) for kind in KINDS},
        "arguments": RECIPES[family].arguments,
        "training": {k: v for k, v in vars(RECIPES[family].training).items()},
        "members": rows,
        "hardware": {"threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()},
        "provenance": provenance(),
        "measured_at": sorted({row.pop("measured_at") for row in rows.values()}),
    }
    content["goals"] = goals(content) if rows else []
    write_json(out / f"held_out-{family}.json", content)
    text = markdown(content)
    (out / f"held_out-{family}.md").write_text(text)
    if shown:
        save_figure(plot(FAMILIES[family], shown), out / f"held_out-{family}")
    return text


def outcomes(bench: Bench, seeds: int) -> Curves:
    """What is finished on one member, at the pace of the clock: per method its runs, one per meta-seed; those of other
    lengths than one horizon as ``name, x3``."""
    found: Curves = {}
    seconds = seconds_of(bench)
    for path in sorted(bench.folder.glob("*.safetensors")):
        run = paced(Outcome.load(path), seconds, bench.setting.horizon)
        label, multiple = run.numbers["method"], run.numbers["multiple"]
        if run.numbers["seed"] < seeds:
            found.setdefault(label if multiple == 1 or label == BEYOND else f"{label}, x{multiple}", []).append(run)
    return found


def member_row(bench: Bench, curves: Curves) -> dict[str, Any]:
    """All numbers of one member."""
    horizon = bench.setting.horizon
    names = [name for name in curves if ", x" not in name and name != BEYOND]
    row: dict[str, Any] = {"seen": bench.member.seen, "tasks": curves["rule"][0].values.shape[1]}
    row |= {"dtype": str(bench.member.dtype).removeprefix("torch."), "meta_seeds": len(curves["rule"])}
    row["measured_at"] = ", ".join(sorted({str(run.numbers["revision"]) for runs in curves.values() for run in runs}))
    row["clocked"] = bench.clock.exists()
    row["methods"] = {name: numbers(name, curves, horizon, bench.setting.stochastic) for name in names}
    if BEYOND in curves:
        past = curves[BEYOND]
        row["past_the_horizon"] = {m: median([o.at(m * horizon) for o in past]) for m in (1, 3, 10)}
    row["comparisons"] = {name: against(name, curves, horizon) for name in names if name != "rule"}
    return row


def meta_training(out: Path, family: str, kind: str, seeds: int) -> list[dict[str, Any]]:
    """Seconds and failed tasks of each meta-training."""
    paths = [folder_of(out, family, kind, seed) / FINISHED for seed in range(seeds)]
    return [read_json(path) for path in paths if path.exists()]
