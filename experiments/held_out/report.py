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
from experiments.lab.meta_training import FINISHED
from experiments.lab.script import save_figure
from experiments.lab.tables import interval, table
from meta_teleport.runs.provenance import provenance
from meta_teleport.runs.run import read_json, write_json

RANDOM = ("no teleport", "random teleport")


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


def markdown(content: dict[str, Any]) -> str:
    """Meta-training, medians by size, and per size with all methods a table of these."""
    lines = [f"# {content['title']}", "", *_training(content), "", _goal_rows(content), "", *_sizes(content), ""]
    for name, row in content["members"].items():
        if len(row["methods"]) > len(RANDOM) + 3:
            lines += [f"## {name}" + ("" if row["seen"] else " (unseen)"), "", *_methods(row), ""]
    return "\n".join(lines)


def _training(content: dict[str, Any]) -> list[str]:
    lines = []
    for kind, runs in content["meta_training"].items():
        if runs:
            seconds = [run["seconds"] for run in runs]
            failed = sum(run["failed"] for run in runs)
            busy = [run["cpu_seconds"] for run in runs]
            spread = f"{min(seconds):.0f} to {max(seconds):.0f} s ({min(busy):.0f} to {max(busy):.0f} s of one core)"
            lines.append(f"- {kind}: {len(runs)} meta-trainings of {spread}, {failed} tasks failed in them")
    return lines


def _goal_rows(content: dict[str, Any]) -> str:
    rows = [[goal["claim"], goal["measured"], goal["verdict"]] for goal in content["goals"]]
    return table(["goal", "measured", "verdict"], rows)


def _sizes(content: dict[str, Any]) -> list[str]:
    """The rule on every member: medians, largest ratio to the start, failures; the control in closed form beside."""
    at = _goals(content)
    head = [
        "member",
        "tasks",
        "seen",
        "start",
        *(f"step {s}" for s in at),
        "largest / first",
        "failed",
        "undone",
        "s / step",
    ]
    whitening = "hand-written teleporter"
    head += [f"{whitening}, step {s}" for s in at] + ["no teleport", "random teleport"]
    lines = []
    for name, row in content["members"].items():
        rule = row["methods"]["rule"]
        cells = [str(row["tasks"]), "yes" if row["seen"] else "no", f"{rule['start']:.2g}"]
        cells += [_value(rule, s) for s in at]
        cells += [f"{rule['highest']:.3g}", str(rule["failed"]), str(rule["undone"]), f"{rule['seconds_per_step']:.1e}"]
        cells += [_value(row["methods"].get(whitening), s) for s in at]
        cells += [_value(row["methods"].get(twin), at[-2:][0]) for twin in RANDOM]
        lines.append([name, *cells])
    steps = f"step {at[-2:][0]}"
    return [table(head, lines), "", f"Medians over tasks and meta-seeds; the twins at {steps}."]


def _goals(content: dict[str, Any]) -> list[str]:
    """The steps that all members share, as their keys."""
    rows = [row["methods"]["rule"] for row in content["members"].values()]
    key = "median_at" if rows and "median_at" in rows[0] else "median"
    shared = [s for s in (rows[0][key] if rows else {}) if all(s in row[key] for row in rows)]
    return shared if key == "median_at" and shared else [1]  # type: ignore[list-item]


def _value(method: dict[str, Any] | None, step: Any) -> str:
    if method is None:
        return ""
    values = method.get("median_at", method["median"])
    return f"{values[step]:.1e}" if step in values else ""


def _methods(row: dict[str, Any]) -> list[str]:
    """All methods on one member; the ratio is rule over method."""
    multiples = sorted({m for method in row["methods"].values() for m in method["median"]}, key=int)
    head = ["method", *(f"{m}x" for m in multiples), "rule / method, equal steps", "won", "equal time", "won"]
    head += ["largest / first", "failed", "s / step"]
    lines = []
    for name, method in sorted(row["methods"].items(), key=lambda item: item[1]["median"][multiples[0]]):
        cells = [f"{method['median'][m]:.2e}" if m in method["median"] else "" for m in multiples]
        versus = row["comparisons"].get(name)
        for part in ("equal_steps", "equal_time"):
            cells += ["", ""] if versus is None else [_ratio(versus[part]), f"{versus[part]['win_rate']:.0%}"]
        cells += [f"{method['highest']:.3g}", str(method["failed"]), f"{method['seconds_per_step']:.1e}"]
        lines.append([name, *cells])
    note = (
        "log10 of the ratio, mean over tasks and meta-seeds, 95 % interval over both; * the method's runs end earlier"
    )
    clock = "; seconds clocked in turns" if row["clocked"] else "; seconds as measured, at different times"
    return [table(head, lines), "", f"{row['tasks']} tasks, {row['meta_seeds']} meta-seeds. {note}{clock}."]


def _ratio(versus: dict[str, Any]) -> str:
    star = "" if versus.get("method_ran_as_long", True) else " *"
    return interval((versus["log10_ratio"], *versus["ci95"])) + star
