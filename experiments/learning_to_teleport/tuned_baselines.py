"""Baselines on held-out tasks, tuned anew for every step at which they are compared."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from experiments.learning_to_teleport.kept_losses import losses_of
from meta_teleport.evaluation.methods import BASELINES, TELEPORT_BASELINES, baseline
from meta_teleport.evaluation.tuning import tune
from meta_teleport.tasks.family import TaskFamily, Tasks


def measured_baselines(
    family: TaskFamily, tasks: Tasks, compared: Sequence[int], seed: int, out: Path
) -> dict[str, dict[str, Any]]:
    """By the name of a baseline: ``losses`` ``(1, last + 1, tasks)``, at every step those of the settings tuned on
    ``family`` for the next of the ``compared`` steps, and ``runs``, what else was measured with each of these settings.
    One without settings runs once. ``seed`` draws random elements. What is finished is kept in ``out``."""
    tuned, found = {step: tune(family, step, folder=out) for step in compared}, {}
    for name in (*TELEPORT_BASELINES, *BASELINES):
        runs = {}
        for step in compared if name in tuned[compared[0]] else compared[-1:]:
            method = baseline(name, tuned[step].get(name, {}), torch.Generator().manual_seed(seed))
            runs[step] = losses_of(method, tasks, out / "held_out" / f"{name}-for-{step}.safetensors", step)
        losses = spliced({step: run.pop("losses") for step, run in runs.items()})
        found[name] = {"losses": losses.unsqueeze(0), "runs": [{"tuned_for": step, **runs[step]} for step in runs]}
    return found


def spliced(losses: dict[int, torch.Tensor]) -> torch.Tensor:
    """From losses ``(step + 1, tasks)`` by the step that their settings are tuned for, ascending: at every step those
    of the next of these, ``(last step + 1, tasks)``."""
    return torch.cat([losses[step][before + 1 : step + 1] for before, step in pairwise([-1, *losses])])
