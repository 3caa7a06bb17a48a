"""Seed-steps per second of SGD: many seeds as one batched program, beside one seed in a plain torch loop.

One seed-step is one step of one seed: a batch of 20 images, forward and backward through 784-16-10-10, an update. The
plain loop takes its batches from the tensor of all images; a second one draws them from a ``DataLoader`` over that
tensor, like the published scripts (but for their decoding of images). Bursts of what is timed lie between bursts of the
plain loop, so that the ratios are those of one machine under one load.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from experiments.lab.figures import COLOURS
from experiments.lab.progress import say
from experiments.lab.script import finish, image_parser, images_of, run
from experiments.lab.tables import interval, table
from experiments.lab.timing import Clock, Work
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.tasks.images import Images, Order, order

HIDDEN, STEP, BATCH = (16, 10), 1e-2, 20
"""As published for MNIST: the network, the step size, the images per step."""
SEEDS = (1, 3, 10, 30, 100, 300)
BURSTS, BURST_S = 6, 0.6
SMOKE_SEEDS, SMOKE_BURSTS, SMOKE_BURST_S = (1, 10), 2, 0.02
PROGRAMS: dict[Order, str] = {"sequential": "one batch for all seeds", "own": "a batch for every seed"}
PLAIN, LOADER = "plain loop", "plain loop, DataLoader"


def network(images: Images) -> MLP:
    """The published network, for images of this size."""
    return MLP((images.x_train.shape[1], *HIDDEN, images.classes))


def batched(images: Images, seeds: int, kind: Order) -> Iterator[None]:
    """Trains all seeds as one program, step by step."""
    copies = Ensemble(lambda: network(images), range(seeds), [partial(torch.optim.SGD, lr=STEP)])
    drawn = order(kind, len(images.x_train), BATCH, 0, copies.seeds)
    while True:
        for index in drawn:
            copies.step(images.x_train[index], images.y_train[index])
            yield


def plain(images: Images) -> Iterator[None]:
    """Trains one seed on slices of the tensor."""
    return _looped(images, lambda: zip(images.x_train.split(BATCH), images.y_train.split(BATCH), strict=True))


def loaded(images: Images) -> Iterator[None]:
    """Trains one seed on what a DataLoader gives."""
    return _looped(images, partial(iter, DataLoader(TensorDataset(images.x_train, images.y_train), batch_size=BATCH)))


def _looped(images: Images, batches: Callable[[], Iterator[Sequence[Tensor]]]) -> Iterator[None]:
    model = network(images)
    optimizer = torch.optim.SGD(model.parameters(), lr=STEP)
    while True:
        for x, y in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            yield


def row(clock: Clock, images: Images, name: str, seeds: int, program: Callable[[], Iterator[None]]) -> dict[str, Any]:
    """One program beside the plain loop: seed-steps per second, and how many times those of the plain loop."""

    def work(program: Callable[[], Iterator[None]], units: int) -> Work:
        return Work(lambda: program().__next__, units)

    found = clock.compare(work(program, seeds), work(partial(plain, images), 1))
    low, high = found["ci95"]
    result = {
        "program": name,
        "seeds": seeds,
        "seed_steps_per_second": 1 / found["seconds"],
        "plain_per_second": 1 / found["reference_seconds"],
        "times_plain": 1 / found["ratio"],
        "ci95": [1 / high, 1 / low],
    }
    say(f"{name}, {seeds} seeds: {result['seed_steps_per_second']:.0f} seed-steps per second")
    return result


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line per program and number of seeds."""
    lines = []
    for found in rows:
        times = interval((found["times_plain"], *found["ci95"]), ".3g")
        lines.append([found["program"], f"{found['seeds']}", f"{found['seed_steps_per_second']:,.0f}", times])
    return table(["program", "seeds", "seed-steps per second", "times the plain loop"], lines) + "\n"


def plot(rows: list[dict[str, Any]]) -> Figure:
    """Seed-steps per second against the number of seeds; the plain loops are levels."""
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(dict.fromkeys(found["program"] for found in rows), COLOURS, strict=False):
        points = [(found["seeds"], found["seed_steps_per_second"]) for found in rows if found["program"] == name]
        if name in (PLAIN, LOADER):
            axes.axhline(points[0][1], color=colour, linestyle="--", label=f"one seed, {name}")
        else:
            axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=name)
    axes.set(xscale="log", yscale="log", xlabel="seeds trained at once", ylabel="seed-steps per second")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return figure


def main() -> None:
    args = image_parser("training_rates", __doc__, ["mnist"], max(SEEDS)).parse_args()
    images = next(iter(images_of(args).values())).flat
    counts = [n for n in (SMOKE_SEEDS if args.smoke else SEEDS) if n <= args.seeds]
    clock = Clock(*((SMOKE_BURSTS, SMOKE_BURST_S) if args.smoke else (BURSTS, BURST_S)), args.device)
    load = os.getloadavg()
    programs = [(PLAIN, 1, partial(plain, images)), (LOADER, 1, partial(loaded, images))]
    programs += [(name, n, partial(batched, images, n, kind)) for kind, name in PROGRAMS.items() for n in counts]
    rows = [row(clock, images, *program) for program in programs]
    content = {"data": images.name, "load_average_before": load, "rows": rows}
    finish(args, content, markdown(rows), {"training_rates": plot(rows)})


if __name__ == "__main__":
    run(main)
