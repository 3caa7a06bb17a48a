"""The results of held_out.py as Markdown."""

from typing import Any

from experiments.lab.tables import interval, table

RANDOM = ("no teleport", "random teleport")


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
