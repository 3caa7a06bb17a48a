"""The losses of one method on held-out tasks, measured once."""

from pathlib import Path
from typing import Any

from meta_teleport.evaluation.measurement import measure
from meta_teleport.evaluation.methods import Method
from meta_teleport.runs.checkpoint import load_tensors, save_tensors
from meta_teleport.tasks.family import Tasks


def losses_of(method: Method, tasks: Tasks, path: Path, steps: int) -> dict[str, Any]:
    """Losses ``(steps + 1, tasks)``, seconds per step and drift of one method; measured once and kept in ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        result = measure(method, tasks, steps)
        numbers = {
            "seconds_per_step": float(result.seconds[-1]) / steps,
            "drift_max": result.drift_max,
            "output_drift_max": result.output_drift_max,
            "teleports": result.teleports * tasks.count,
            "teleports_undone": result.rejected,
            "failed": result.failed,
            "settings": method.settings,
        }
        save_tensors(path, {"losses": result.losses}, numbers)
    tensors, numbers = load_tensors(path)
    return {"losses": tensors["losses"], **numbers}
