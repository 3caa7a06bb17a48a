"""What a run is and where it stands, as plain values."""

from collections.abc import Iterator
from typing import Any

from meta_teleport.learned.serialization import load, named
from meta_teleport.runs.checkpoint import load_tensors
from meta_teleport.runs.run import Run, read_json


def inspect_run(name: str) -> dict[str, Any]:
    """Folder, meta-step that is saved, config, provenance, last metrics of a run folder and whether it has been
    evaluated. Of a rule that comes with the package, given by its name, only config and meta-step are kept.

    Raises ``UserError`` for folders that are no run.
    """
    if shipped := named(name):
        rule, blank = load(shipped), dict.fromkeys(("folder", "provenance", "last_metrics"))
        return {**blank, "meta_step": rule.meta_step, "config": rule.config, "evaluated": False}
    run = Run.open(name)
    rows = run.metrics()
    return {
        "folder": str(run.folder),
        "meta_step": load_tensors(run.rule_path)[1].get("meta_step") if run.rule_path.exists() else None,
        "config": run.config,
        "provenance": read_json(run.folder / "provenance.json"),
        "last_metrics": rows[-1] if rows else None,
        "evaluated": (run.folder / "evaluation.json").exists(),
    }


def lines(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested dict as pairs of a dotted name and a value."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from lines(value, f"{name}.")
        else:
            yield name, "-" if value is None else str(value)
