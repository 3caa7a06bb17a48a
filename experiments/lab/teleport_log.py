"""What the teleports of a run did, kept beside its progress so that a resumed run knows of those before the stop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.lab.progress import require_same
from meta_teleport.optimizers.ensemble import Jump
from meta_teleport.runs.run import read_json, write_json


class TeleportLog:
    """One entry per named setting and teleport, in a JSON file ``path``.

    Raises ``UserError`` where the file belongs to a run of other settings.
    """

    def __init__(self, path: Path, settings: Sequence[str]) -> None:
        self.path, self.settings = path, list(settings)
        self._jumps: dict[str, dict[str, dict[str, Any]]] = {}
        if path.exists():
            found = read_json(path)
            require_same(path, found, {"settings": self.settings})
            self._jumps = found["jumps"]

    def add(self, setting: str, number: int, jump: Jump) -> None:
        """Teleport ``number`` of a setting; one that is known by this number is replaced."""
        drift = (jump.after - jump.before).abs() / jump.before.abs().clamp(min=1)
        columns = {"drift": drift, "size": jump.size, "kept": jump.kept.float()}
        self._jumps.setdefault(setting, {})[str(number)] = {key: c.tolist() for key, c in columns.items()}

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"settings": self.settings, "jumps": self._jumps})

    def summary(self, setting: str) -> dict[str, Any] | None:
        """Over all teleports and runs of a setting: how many, the median and the largest relative drift of the loss on
        the batch, |L' - L| / max(|L|, 1), of those that are finite (None without any), the mean length of the way in
        the Lie algebra, and the share that was kept. None without teleports."""
        jumps = self._jumps.get(setting)
        if not jumps:
            return None
        drift, size, kept = (torch.tensor([j[key] for j in jumps.values()]) for key in ("drift", "size", "kept"))
        drift = drift[drift.isfinite()]
        return {
            "count": len(jumps),
            "drift_median": float(drift.median()) if len(drift) else None,
            "drift_max": float(drift.max()) if len(drift) else None,
            "size": float(size.mean()),
            "kept": float(kept.mean()),
        }
