"""Settings of the methods of held_out.py, tuned on training tasks of each member; a grid runs as one batch."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.held_out.members import Setting
from experiments.held_out.methods import Contestant, Settings
from experiments.held_out.runs import run
from experiments.lab.progress import kept
from meta_teleport.evaluation.statistics import log10
from meta_teleport.evaluation.tuning import moved_on
from meta_teleport.tasks.family import Tasks

SEED, TASKS, AT_ONCE, ROUNDS = 1, 8, 192, 3
PROOF_SEED, PROOF_TASKS, PROVED = 2, 32, 8
Candidate = dict[str, Any]


def tuned(
    contestant: Contestant, tasks: Tasks, proof: Tasks, setting: Setting, steps: int, path: Path
) -> dict[str, Any]:
    """The best settings on these training tasks by the mean log10 of what is measured after ``steps``, found again in
    ``path``. Step sizes on the edge of their grid move the grid on. Of the eight best the first is taken that fails on
    no task of ``proof``, if there is one.

    Choices are given by their number.
    """
    return kept(path, partial(_tuned, contestant, tasks, proof, setting, steps), {})


def _tuned(contestant: Contestant, tasks: Tasks, proof: Tasks, setting: Setting, steps: int) -> Candidate:
    found: list[Candidate] = []
    for numbers in product(*(range(len(values)) for values in contestant.choices.values())):
        named = dict(zip(contestant.choices, numbers, strict=True))
        chosen = settled(contestant, named)
        found += [{**point, **named} for point in _on_grid(contestant, chosen, tasks, setting, steps)]
    first = sorted(found, key=lambda candidate: candidate["score"])[:PROVED]
    proved = (c for c in first if not _fails(contestant, settled(contestant, c), proof, setting, steps))
    return first[0] if len(found) == 1 else next(proved, first[0])


def settled(contestant: Contestant, best: Settings) -> dict[str, Any]:
    """Settings with choices in place of their numbers."""
    chosen = {name: values[int(best[name])] for name, values in contestant.choices.items() if name in best}
    return {**{name: best[name] for name in contestant.axes if name in best}, **chosen}


def _on_grid(contestant: Contestant, chosen: Settings, tasks: Tasks, setting: Setting, steps: int) -> list[Candidate]:
    """All points of the grid, and of those that it is moved to, with their scores."""
    axes = contestant.axes
    found: dict[Any, float] = {}
    if not axes and not contestant.choices:
        return [{"score": 0.0}]
    for _ in range(ROUNDS):
        points = [point for point in product(*axes.values()) if point not in found]
        scores = torch.cat([_scores(contestant, chosen, part, tasks, setting, steps) for part in _parts(points, tasks)])
        found |= dict(zip(points, scores.tolist(), strict=True))
        best = dict(zip(axes, min(found, key=found.__getitem__), strict=True))
        moved = {name: moved_on(grid, best[name]) if "lr" in name else grid for name, grid in axes.items()}
        if moved == axes:
            break
        axes = moved
    return [{"score": score, **dict(zip(axes, point, strict=True))} for point, score in found.items()]


def _fails(contestant: Contestant, settings: Settings, tasks: Tasks, setting: Setting, steps: int) -> bool:
    return run(contestant.build(settings, tasks, steps), tasks, steps, setting).numbers["failed"] > 0


def _scores(
    contestant: Contestant, chosen: Settings, points: Sequence[Any], tasks: Tasks, setting: Setting, steps: int
) -> Tensor:
    """The criterion at some points of the grid, all in one batch."""
    like = next(iter(tasks.params.values()))
    batch = tasks.select(torch.arange(tasks.count).repeat(len(points)))
    columns = {
        name: torch.tensor([point[i] for point in points], dtype=like.dtype).repeat_interleave(tasks.count)
        for i, name in enumerate(contestant.axes)
    }
    method = contestant.build({**columns, **chosen}, batch, steps)
    last = run(method, batch, steps, setting).values[-1]
    return log10(last).view(len(points), tasks.count).mean(1)


def _parts(points: list[Any], tasks: Tasks) -> list[list[Any]]:
    size = max(1, AT_ONCE // tasks.count)
    return [points[i : i + size] for i in range(0, len(points), size)]
