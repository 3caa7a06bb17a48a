"""Seconds per step of an optimizer, and per teleport, of one copy alone: what turns curves over epochs into curves
over time, although the curves come from many copies in one program."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from experiments.lab.progress import kept
from experiments.lab.timing import Clock, Work
from experiments.optimizers.bench import Bench, Entry
from experiments.optimizers.variants import PLAIN, Variant
from meta_teleport.optimizers.ensemble import Ensemble

BURSTS = 5

Seconds = dict[str, dict[str, float]]


def seconds_per(bench: Bench, entries: Sequence[Entry], batch: int, burst_s: float, keep: Path) -> Seconds:
    """Seconds per ``step`` of every method on ``batch`` images and per ``teleport`` of every variant (between steps of
    the first method), by name; medians over bursts. Measured once, and kept in a file."""
    return kept(keep, partial(_measured, bench, entries, batch, burst_s), {})


def _measured(bench: Bench, entries: Sequence[Entry], batch: int, burst_s: float) -> Seconds:
    images, methods = bench.images, {entry.method.name: entry for entry in reversed(entries)}
    clock = Clock(BURSTS, burst_s, str(images.x_train.device))
    x, y = images.x_train[None, :batch], images.y_train[None, :batch]
    alone = {name: _alone(bench, entry) for name, entry in reversed(methods.items())}
    steps = {name: _median(clock, partial(copies.step, x, y)) for name, copies in alone.items()}
    ways = bench.teleports.ways(bench.build(), entries[0].method)
    names = dict.fromkeys(entry.variant for entry in entries if entry.variant != PLAIN)
    copies = _alone(bench, entries[0])
    teleports = {name: _median(clock, _teleport(bench, copies, ways[name])) for name in names}
    return {"step": steps, "teleport": teleports}


def _alone(bench: Bench, entry: Entry) -> Ensemble:
    return Ensemble(bench.build, [0], [entry.method.factory(entry.lr)], device=bench.images.x_train.device)


def _teleport(bench: Bench, copies: Ensemble, way: Variant) -> Callable[[], object]:
    x, y = (tensor[: bench.teleports.batch] for tensor in (bench.images.x_train, bench.images.y_train))
    return lambda: copies.teleport(0, way.symmetry, way.search(0), x, y, "keep")


def _median(clock: Clock, run: Callable[[], object]) -> float:
    run()
    return median(clock.burst(Work(lambda: run), run) for _ in range(clock.bursts))
