"""Settings of the baselines, tuned per task family on training tasks.

The criterion is the mean over tasks of log10 of the loss at the horizon; a failed task counts 1e6 times its initial
loss. All settings of a grid run as one batch. Where the best step size lies on the edge of its grid, the grid moves
on in that direction. What was found is kept in a file and found again under its key: the family, dtype, horizon,
baselines, grids and the code. It is believed only if it carries the seal of this machine's user: what somebody else has
put into a folder is tuned again.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.evaluation.measurement import measure
from meta_teleport.evaluation.methods import (
    ASCENT_STEPS,
    BASELINES,
    Interventions,
    Method,
    Settings,
    ascent,
    baseline,
    decades,
)
from meta_teleport.evaluation.statistics import log10
from meta_teleport.registry import class_path
from meta_teleport.runs.run import read_json, write_json
from meta_teleport.runs.seal import code_digest, is_sealed, seal
from meta_teleport.runs.writing import make_folder
from meta_teleport.tasks.family import TaskFamily, Tasks
from meta_teleport.teleportation.ascent import Ascent

Report = Callable[[str, int, int], None]
Axes = dict[str, list[float]]

FILE = "tuning.json"
SCHEMA = 1
SEED = 0
TASKS = 32
ROUNDS = 6
ASCENT = {"size": [3e-4, 3e-3, 3e-2, 3e-1], "lr": decades(-2, 0.5, 2)}
REFINED = decades(-0.5, 0.5)
RANDOM = decades(-1, 0.5)


def tune(
    family: TaskFamily,
    horizon: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    folder: str | Path | None = None,
    report: Report | None = None,
) -> dict[str, Settings]:
    """The settings of every tuned baseline by its name; kept in ``folder`` if one is given, and read from there if they
    were made here, with the code of today.

    ``report("tuning", done, methods)`` is called after every method. Networks without a site that can be searched
    have no teleport-augmented baselines.
    """
    key = _key(family, horizon, dtype)
    folder = None if folder is None else Path(folder)
    kept = _read(folder)
    others = [entry for entry in kept if entry.get("key") != key]
    for entry in kept:
        if entry not in others and is_sealed([key, entry.get("settings")], entry.get("seal")):
            return dict(entry["settings"])
    tasks = family.sample(TASKS, torch.Generator().manual_seed(SEED), "train", dtype, device)
    settings = _tune_all(tasks, horizon, report)
    if folder is not None:
        make_folder(folder)
        made = {"key": key, "settings": settings, "seal": seal([key, settings])}
        write_json(folder / FILE, {"schema": SCHEMA, "entries": [*others, made]})
    return settings


def _tune_all(tasks: Tasks, horizon: int, report: Report | None) -> dict[str, Settings]:
    found: dict[str, Settings] = {}
    tuned = {name: entry for name, entry in BASELINES.items() if entry.grids}
    teleported = [name for name, entry in tuned.items() if entry.teleports] if tasks.orbit.sites else []
    total = len(tuned) + 2 * len(teleported)

    def add(name: str, settings: Settings) -> None:
        found[name] = settings
        if report is not None:
            report("tuning", len(found), total)

    for name, entry in tuned.items():
        unit = found[entry.times]["lr"] if entry.times else 1.0
        add(name, _search(name, {axis: _scaled(unit, grid) for axis, grid in entry.grids.items()}, tasks, horizon))
    for name in teleported:
        lr = found[name]["lr"]
        add(f"{name}+ascent", chosen := _tune_ascent(f"{name}+ascent", lr, tasks, horizon))
        fixed = {"at": chosen["at"], "sizes": _path_lengths(f"{name}+ascent", chosen, tasks)}
        add(f"{name}+random", _search(f"{name}+random", {"lr": _scaled(lr, RANDOM)}, tasks, horizon, fixed))
    return found


def _tune_ascent(name: str, lr: float, tasks: Tasks, horizon: int) -> Settings:
    """Schedule, size and step size together on half of the tasks, then the step size again on all of them."""
    half = tasks.select(torch.arange(tasks.count // 2, device=next(iter(tasks.params.values())).device))
    schedules = {(0,), tuple(range(min(5, horizon))), tuple(range(0, horizon, 10))}
    axes = {"size": ASCENT["size"], "lr": _scaled(lr, ASCENT["lr"])}
    tried = [_search(name, axes, half, horizon, {"at": list(at)}) for at in sorted(schedules)]
    best = min(tried, key=lambda settings: settings["score"])
    fixed = {"at": best["at"], "size": best["size"]}
    return _search(name, {"lr": _scaled(best["lr"], REFINED)}, tasks, horizon, fixed)


def _path_lengths(name: str, settings: Settings, tasks: Tasks) -> list[float]:
    """How far the tuned ascent goes at each of its steps: the median over tasks of the length of its path."""
    lengths: list[float] = []

    def note(found: Ascent) -> None:
        lengths.append(float(found.length.median()))

    method = baseline(name, settings, torch.Generator())
    interventions = Interventions(tuple(settings["at"]), ascent(settings["size"], note))
    measure(
        Method(name, method.kind, method.rule, {}, interventions),
        tasks,
        max(settings["at"]) + 1,
        warm_up=False,
    )
    return lengths


def _search(name: str, axes: Axes, tasks: Tasks, horizon: int, fixed: Mapping[str, Any] | None = None) -> Settings:
    """The best settings on the grid spanned by ``axes``; step sizes on an edge move the grid on."""
    best: Settings = {"score": float("inf")}
    for _ in range(ROUNDS):
        points = list(product(*axes.values()))
        scores = _scores(name, dict(zip(axes, zip(*points, strict=True), strict=True)), fixed or {}, tasks, horizon)
        i = int(scores.argmin())
        if float(scores[i]) < best["score"]:
            best = {**dict(zip(axes, points[i], strict=True)), **(fixed or {}), "score": float(scores[i])}
        moved = {axis: moved_on(grid, best[axis]) if "lr" in axis else grid for axis, grid in axes.items()}
        if moved == axes:
            break
        axes = moved
    return best


def _scores(
    name: str, settings: Mapping[str, Sequence[float]], fixed: Mapping[str, Any], tasks: Tasks, horizon: int
) -> Tensor:
    """The criterion for every point of a grid, given as one column per setting; all points run as one batch."""
    like = next(iter(tasks.params.values()))
    columns = {axis: torch.tensor(v, dtype=like.dtype, device=like.device) for axis, v in settings.items()}
    count = len(next(iter(settings.values())))
    batch = tasks.select(torch.arange(tasks.count, device=like.device).repeat(count))
    repeated = {axis: column.repeat_interleave(tasks.count) for axis, column in columns.items()}
    method = baseline(name, {**repeated, **fixed}, torch.Generator().manual_seed(SEED))
    losses = measure(method, batch, horizon, warm_up=False).losses
    return log10(losses[-1]).reshape(count, tasks.count).mean(1)


def moved_on(grid: list[float], best: float) -> list[float]:
    """The grid moved by half of its length where ``best`` is one of its ends."""
    ratio, half = grid[1] / grid[0], len(grid) // 2
    if best <= grid[0]:
        return [value / ratio**half for value in grid]
    return [value * ratio**half for value in grid] if best >= grid[-1] else grid


def _scaled(lr: float, grid: list[float]) -> list[float]:
    return [lr * factor for factor in grid]


def _key(family: TaskFamily, horizon: int, dtype: torch.dtype) -> dict[str, Any]:
    grids = {"ascent": ASCENT, "refined": REFINED, "random": RANDOM}
    return {
        "family": fingerprint(family),
        "dtype": str(dtype).removeprefix("torch."),
        "horizon": horizon,
        "baselines": {name: entry.grids for name, entry in BASELINES.items()},
        "grid": {**grids, "ascent_steps": ASCENT_STEPS, "tasks": TASKS, "seed": SEED},
        "code": code_digest(),
    }


def fingerprint(family: TaskFamily) -> str:
    """The family's class and a digest of what it samples: two problems, their losses and their symmetry."""
    tasks = family.sample(2, torch.Generator().manual_seed(SEED), "train", torch.float64)
    losses = [tasks.loss(tasks.params, torch.full((2,), step)) for step in (0, 1)]
    digest = hashlib.sha256()
    for name, tensor in sorted({**tasks.params, **tasks.data}.items()):
        digest.update(f"{name} {[f'{value:.6e}' for value in tensor.flatten().tolist()]}".encode())
    digest.update(str([f"{value:.6e}" for loss in losses for value in loss.tolist()]).encode())
    for site in tasks.symmetry.sites:
        plain = [(f.name, v) for f in fields(site) if isinstance(v := getattr(site, f.name), str | int | bool)]
        digest.update(f"{type(site).__qualname__} {site.group} {plain}".encode())
    return f"{class_path(type(family))} {digest.hexdigest()[:16]}"


def _read(folder: Path | None) -> list[dict[str, Any]]:
    """What the file holds; nothing if it is missing, cut off or of another version: it can be made again."""
    if folder is None:
        return []
    try:
        content = read_json(folder / FILE)
        return [entry for entry in content["entries"] if isinstance(entry, dict)] if content["schema"] == SCHEMA else []
    except (UserError, KeyError, TypeError):
        return []
