"""What a run is and where it stands, as plain values."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meta_teleport.errors import UserError
from meta_teleport.learned.serialization import load, named
from meta_teleport.runs.checkpoint import load_tensors
from meta_teleport.runs.run import Run, read_json

EVALUATED = ("family", "task", "tasks", "steps", "horizon", "seed", "dtype", "device", "rule")
"""What a file of results says about what was evaluated; files of schema 1 say no more than family, tasks and steps."""


def inspect_run(name: str) -> dict[str, Any]:
    """Folder, meta-step that is saved, config, provenance, last metrics of a run folder and what it has been evaluated
    on, by file. Of a rule that comes with the package, given by its name, only config and meta-step are kept.

    Raises ``UserError`` for folders that are no run.
    """
    if shipped := named(name):
        rule, blank = load(shipped), dict.fromkeys(("folder", "provenance", "last_metrics"))
        return {**blank, "meta_step": rule.meta_step, "config": rule.config, "evaluated": False, "evaluations": {}}
    run = Run.open(name)
    rows, evaluations = run.metrics(), _evaluations(run.folder)
    return {
        "folder": str(run.folder),
        "meta_step": _meta_step(run.rule_path),
        "config": run.config,
        "provenance": read_json(run.folder / "provenance.json"),
        "last_metrics": rows[-1] if rows else None,
        "evaluated": bool(evaluations),
        "evaluations": evaluations,
    }


def pairs(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What :func:`inspect_run` found as lines for people: a name and a value each."""
    yield from lines({key: content[key] for key in ("config", "provenance", "last_metrics", "evaluated")})
    for file, what in content["evaluations"].items():
        seed, dtype = (f"{what[key]}" if what[key] is not None else "unknown" for key in ("seed", "dtype"))
        yield file, f"{what['family']}, {what['tasks']} tasks, {what['steps']} steps, seed {seed}, dtype {dtype}"


def lines(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested dict as pairs of a dotted name and a value."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from lines(value, f"{name}.")
        else:
            yield name, "-" if value is None else str(value)


def _meta_step(path: Path) -> int | None:
    """The meta-step that a rule file tells; None where there is none. Raises ``UserError`` for one that is damaged."""
    found = load_tensors(path)[1].get("meta_step") if path.exists() else None
    if not (found is None or type(found) is int):
        raise UserError(f"{path} is damaged (its meta_step is {found!r:.50}): copy it again")
    return found


def _evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """What each file of results in a folder is about, by its name; None where an older file does not say."""
    found = {path.name: read_json(path) for path in sorted(folder.glob("evaluation*.json"))}
    return {
        name: {**{key: content.get(key) for key in EVALUATED}, "time": _time(content.get("provenance"))}
        for name, content in found.items()
    }


def _time(provenance: Any) -> Any:
    return provenance.get("time") if isinstance(provenance, dict) else None
