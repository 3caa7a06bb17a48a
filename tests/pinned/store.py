"""Committed numbers: how they are written into ``values/NAME.json`` and compared with those of a run."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VALUES = Path(__file__).with_name("values")
RELATIVE, ROUNDING = 1e-9, 1e-13
"""Of the largest number of an entry; and what differences of numbers of size one may be, where they cancel."""

Values = dict[str, Any]


def flat(content: Any, lead: str = "") -> Values:
    """Tables and lists of tables as one table: tensors and lists of numbers become lists of floats, what is neither a
    number nor made of numbers stays."""
    if isinstance(content, Tensor):
        return {lead: content.detach().double().flatten().tolist()}
    if isinstance(content, dict):
        parts = [flat(value, f"{lead}/{key}" if lead else str(key)) for key, value in content.items()]
    elif isinstance(content, list | tuple) and not all(isinstance(x, int | float) for x in content):
        parts = [flat(value, f"{lead}/{number}" if lead else str(number)) for number, value in enumerate(content)]
    else:
        return {lead: list(content) if isinstance(content, tuple) else content}
    return {name: value for part in parts for name, value in part.items()}


def write(name: str, content: Any) -> None:
    """Puts the numbers of a case into its file, one entry per line."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in flat(content).items()]
    VALUES.mkdir(exist_ok=True)
    (VALUES / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read(name: str) -> Values:
    return dict(json.loads((VALUES / f"{name}.json").read_text()))


def apart(found: Any, expected: Values) -> dict[str, float]:
    """By entry, how far a run is from what is committed, as a part of the largest number of the entry; infinite for
    entries that are missing on one side, and for others than numbers that differ."""
    values = flat(found)
    return {key: _apart(values.get(key), expected.get(key)) for key in {**values, **expected}}


def _apart(a: Any, b: Any) -> float:
    if isinstance(a, str | bool | None) or isinstance(b, str | bool | None):
        return 0.0 if a == b else torch.inf
    x, y = (torch.as_tensor(v, dtype=torch.float64).flatten() for v in (a, b))
    if x.shape != y.shape or not torch.equal(x.isfinite(), y.isfinite()):
        return torch.inf
    x, y = x.nan_to_num(), y.nan_to_num()
    difference = (x - y).abs().amax() if len(x) else torch.zeros(())
    return 0.0 if float(difference) <= ROUNDING else float(difference / y.abs().amax())
