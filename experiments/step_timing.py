"""Seconds per step of an optimizer, and per teleport, of one copy alone: what turns curves over epochs into curves
over time, although the curves come from many copies in one program."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from overhead_timing import Clock, Work
from teleport_variants import Variant
from torch import nn

from meta_teleport.optimizers.copies import Copies
from meta_teleport.optimizers.settings import Factory
from meta_teleport.record import read_json, write_json
from meta_teleport.tasks.images import Images

BURSTS, BURST_S = 5, 0.3

Seconds = dict[str, dict[str, float]]


def seconds_per(
    methods: Mapping[str, Factory],
    ways: Mapping[str, Variant],
    build: Callable[[], nn.Module],
    images: Images,
    batches: tuple[int, int],
    keep: Path,
) -> Seconds:
    """Seconds per ``step`` of every method and per ``teleport`` of every variant (that of the first method), by name;
    medians over bursts. ``batches``: how many images a step and a teleport see. Measured once, and kept in a file."""
    if keep.exists():
        return {kind: dict(found) for kind, found in read_json(keep).items()}
    clock = Clock(BURSTS, BURST_S, str(images.x_train.device))
    (x, y), (wide_x, wide_y) = ((images.x_train[:n], images.y_train[:n]) for n in batches)

    def alone(factory: Factory) -> Copies:
        copies = Copies(build, [0], [factory], device=x.device)
        copies.step(x[None], y[None])
        return copies

    steps = {name: alone(factory) for name, factory in methods.items()}
    seconds: Seconds = {"step": {}, "teleport": {}}
    for name, copies in steps.items():
        seconds["step"][name] = _median(clock, lambda copies=copies: copies.step(x[None], y[None]))  # type: ignore[misc]
    copies = alone(next(iter(methods.values())))
    for name, way in ways.items():

        def jump(way: Variant = way) -> object:
            return copies.teleport(0, way.symmetry, way.search(0), wide_x, wide_y, "keep")

        seconds["teleport"][name] = _median(clock, jump)
    keep.parent.mkdir(parents=True, exist_ok=True)
    write_json(keep, seconds)
    return seconds


def _median(clock: Clock, run: Callable[[], object]) -> float:
    return median(clock.burst(Work(lambda: run), run) for _ in range(clock.bursts))
