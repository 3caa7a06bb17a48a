"""Evaluations on disk: one file and one figure for all that was evaluated alike.

::

    evaluation-FAMILY-seedN-KEY.json    what was evaluated, how, on what, and what came out
    evaluation-FAMILY-seedN-KEY.png     the same as a figure

KEY stands for the rule with its meta-parameters, the family with its settings, tasks, steps, horizon, seed, dtype and
kind of device: another of these is another file, and no result replaces that of another evaluation.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from meta_teleport.errors import UserError
from meta_teleport.evaluation.evaluation import Evaluation
from meta_teleport.evaluation.plots import plot_evaluation
from meta_teleport.rules.rule import Rule
from meta_teleport.runs.provenance import provenance
from meta_teleport.runs.run import read_json, write_json
from meta_teleport.runs.writing import replacing

TIMED = ("provenance", "seconds")
"""What differs between two evaluations alike."""


class Result(NamedTuple):
    """The content of a file, where it and its figure lie, and a line about the result that it replaced, if any."""

    content: dict[str, Any]
    path: Path
    figure: Path
    note: str


def keep(evaluation: Evaluation, folder: Path, *, rule: str, task: dict[str, Any], device: str = "cpu") -> Result:
    """Writes an evaluation of the rule that is called ``rule`` on the family of the spec ``task`` into ``folder``.

    ``device`` is what the device is called. File and figure are written whole or not at all. Raises ``UserError`` if
    the folder cannot be written.
    """
    found, (learned,) = evaluation.to_json(), [m.rule for m in evaluation.methods.values() if m.kind == "learned"]
    described = {"name": rule, "meta_step": learned.meta_step, "meta_parameters": _digest(learned)}
    content = {"rule": described, "task": task, **found, "provenance": provenance(device)}
    path = folder / f"evaluation-{evaluation.family}-seed{evaluation.seed}-{_key(content)}.json"
    note = _note(path, content)
    figure = path.with_suffix(".png")
    with replacing(figure) as drawn:
        plot_evaluation(evaluation, drawn, evaluation.horizon)
        write_json(path, content)
    return Result(content, path, figure, note)


def _key(content: dict[str, Any]) -> str:
    asked = {key: content[key] for key in ("task", "fingerprint", "tasks", "steps", "horizon", "seed", "dtype")}
    asked |= {"rule": content["rule"]["meta_parameters"], "device": content["device"].split(":")[0]}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


def _digest(rule: Rule) -> str:
    """Of the meta-parameters: two rules with the same are one."""
    digest = hashlib.sha256(type(rule).__qualname__.encode())
    for name, tensor in sorted(rule.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _note(path: Path, content: dict[str, Any]) -> str:
    """A line about the earlier result of the same evaluation; empty if there is none."""
    if not path.exists():
        return ""
    try:
        earlier = read_json(path)
    except UserError:
        return f"{path} was cut off: written anew"
    made = earlier.get("provenance")
    time = made.get("time") if isinstance(made, dict) else "unknown time"
    how = "an equal one" if _untimed(earlier) == _untimed(content) else "one that differs from it"
    return f"{path}: the result of {time} with the same settings is replaced by {how}"


def _untimed(content: Any) -> Any:
    """The content as JSON gives it back, without what is never the same twice."""
    if isinstance(content, dict):
        return {key: _untimed(value) for key, value in content.items() if key not in TIMED}
    return [_untimed(value) for value in content] if isinstance(content, list | tuple) else content
