"""Teleports past MLPs: a CNN with BatchNorm, a ResNet and a transformer of a few thousand parameters each.

Which symmetries does detection find in them, do teleports along these help SGD, momentum, Adam and AdamW, and does the
curvature of their orbits tell how well a minimum generalises? Two parts:

    correlation   100 seeds of SGD: Pearson's r of sharpness and curvature with the test loss and the gap
    comparison    every optimizer with and without teleports, step sizes chosen on the validation images for each

    python experiments/architectures.py                                   both, on the digits
    python experiments/architectures.py --data mnist                      on 6000 images of MNIST, as many steps

The networks of all seeds and settings are one batched program. Stop it at any time: the same command goes on.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from architecture_training import SEARCH, Build, Entry, Method, entries_of, sites, train_entries, tuned
from architectures_report import figures, markdown
from correlation_statistics import correlations
from image_cli import images_of, parser, run, save_figure, say, write_results
from image_teleports import randomized
from image_training import Plan, train
from sharpness_and_curvature import curvature, gaussian, loss, measured, sharpness
from small_networks import networks
from torch import Tensor

import meta_teleport as mt
from meta_teleport.checkpoint import write_atomically
from meta_teleport.optimizers.copies import Copies, Search
from meta_teleport.params import Params, dot
from meta_teleport.tasks.images import Images
from meta_teleport.teleportation.objectives import SEARCH_SCALES

BATCH, TELEPORT_BATCH = 20, 200
SEEDS, COMPARED_SEEDS, TUNING_SEEDS = 100, 12, (1000, 1001)
METHODS = (
    Method("SGD", torch.optim.SGD, (0.03, 0.1, 0.3, 1.0)),
    Method("momentum", partial(torch.optim.SGD, momentum=0.9), (0.003, 0.01, 0.03, 0.1)),
    Method("Adam", torch.optim.Adam, (0.001, 0.003, 0.01, 0.03)),
    Method("AdamW", torch.optim.AdamW, (0.001, 0.003, 0.01, 0.03)),
)
STEP_SIZE = 0.1
"""Of SGD where correlations are measured."""
NEAR = tuple(0.001 + 0.01 * i for i in range(20))
"""Distances of sharpness as published for MNIST."""
DIRECTIONS, NEAR_DIRECTIONS = 60, 20
"""How many random directions each measure is a mean over, one per batch of training images."""


@dataclass(frozen=True)
class Size:
    """How many training and other images are used, for how many epochs each part trains, and after how many epochs
    the comparison teleports again."""

    images: tuple[int, int]
    correlated: int
    compared: int
    every: int


SMALL, LARGE = Size((1200, 400), 40, 15, 5), Size((6000, 2000), 8, 3, 1)
LARGE_COUNT = 5000
SMOKE = {
    "METHODS": tuple(Method(m.name, m.optimizer, m.grid[1:3]) for m in METHODS[::2]),
    "SMALL": Size((120, 60), 2, 2, 1),
    "COMPARED_SEEDS": 3,
    "TUNING_SEEDS": (1000,),
    "DIRECTIONS": 4,
    "NEAR_DIRECTIONS": 4,
    "TELEPORT_BATCH": 50,
}
SMOKE_SEEDS = 6


def found_sites(build: Build, images: Images) -> dict[str, Any]:
    """What detection finds in a network, and the largest relative change of its outputs over random elements."""
    model = build().double()
    x = images.x_train[:BATCH].cpu().double()
    symmetry = mt.find_symmetries(model, x)
    moved = {name for site in symmetry.continuous.sites for name in site.parameters}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return {
        "parameters": sum(sizes.values()),
        "moved": sum(sizes[name] for name in moved),
        "sites": [str(site) for site in symmetry.sites],
        "refusals": [[list(names), reason] for names, reason in symmetry.refusals],
        "drift": mt.verify(model, symmetry, x),
    }


def first_teleport(build: Build, images: Images, seeds: Sequence[int]) -> dict[str, float]:
    """How many times larger one teleport makes the squared gradient norm at the initial weights, the geometric mean
    over seeds: the search, and as far in a random direction."""
    x, y = images.x_train[:TELEPORT_BATCH], images.y_train[:TELEPORT_BATCH]
    symmetry = sites(build, images)

    def growth(search: Search) -> float:
        copies = Copies(build, seeds, [partial(torch.optim.SGD, lr=0.0)], device=x.device)
        before = _squared_gradient(copies, x, y)
        copies.teleport(0, symmetry, search, x, y)
        return float((_squared_gradient(copies, x, y) / before).log().mean().exp())

    return {"search": growth(SEARCH), "random": growth(randomized(SEARCH, 0))}


def _squared_gradient(copies: Copies, x: Tensor, y: Tensor) -> Tensor:
    losses = copies.losses(x[None], y[None], None, {name: b.clone() for name, b in copies.buffers.items()})
    gradients: Params = dict(
        zip(copies.params, torch.autograd.grad(losses.sum(), list(copies.params.values())), strict=True)
    )
    return dot(gradients, gradients)


def correlated(args: Namespace, name: str, build: Build, images: Images, size: Size) -> dict[str, Any]:
    """Trains all seeds by SGD, measures them in evaluation mode, and correlates."""
    label, folder = f"{images.name}, {name}, correlation", args.out / images.name / name
    copies = Copies(build, range(args.seeds), [partial(torch.optim.SGD, lr=STEP_SIZE)], device=args.device)
    plan = Plan(size.correlated, BATCH, "own")
    curves = train(copies, images, plan, label=label, keep=folder / "correlation.safetensors")
    copies.model.eval()
    symmetry = sites(build, images)
    measures = {
        "loss": (loss(copies), DIRECTIONS),
        "sharpness, t 0.001 to 0.191": (sharpness(copies, NEAR, nonnegative=False), NEAR_DIRECTIONS),
        "sharpness, t 0.1 to 0.9": (sharpness(copies, SEARCH_SCALES, nonnegative=False), DIRECTIONS),
        "curvature": (curvature(copies, symmetry, gaussian), DIRECTIONS),
    }
    batches = measured(measures, images, BATCH, folder / "measures.safetensors", label)
    trained = copies.evaluate(images.x_train, images.y_train)[0].cpu()
    say(f"{label}: {copies.count} seeds trained in {float(curves.seconds.sum()):.0f} s and measured")
    accuracy = curves.accuracy[-1]
    return {
        "data": images.name,
        "order": name,
        "epochs": size.correlated,
        "step_size": STEP_SIZE,
        "seconds": float(curves.seconds.sum()),
        "accuracy": {"mean": float(accuracy.mean()), "std": float(accuracy.std())},
        "directions": {key: len(rows) for key, rows in batches.items()},
        **correlations(trained, curves.test[-1], batches),
    }


def compared(args: Namespace, name: str, build: Build, images: Images, size: Size) -> dict[str, Any]:
    """All optimizers in all variants at tuned step sizes: final losses of every seed."""
    began, folder = time.perf_counter(), args.out / images.name / name
    plan = Plan(size.compared, BATCH, "shared")
    entries = entries_of(METHODS, size.every)

    def tune(tried: list[Entry]) -> Tensor:
        keep = folder / "tuning.safetensors"
        return train_entries(tried, TUNING_SEEDS, build, images, plan, keep, TELEPORT_BATCH, validation=True)[0]["test"]

    entries, table = tuned(entries, METHODS, tune)
    seeds = range(min(args.seeds, COMPARED_SEEDS))
    keep = folder / "comparison.safetensors"
    last, log = train_entries(entries, seeds, build, images, plan, keep, TELEPORT_BATCH)
    rows = [
        {
            "method": entry.method,
            "variant": entry.variant.name,
            "lr": entry.lr,
            "last": {key: values[number].tolist() for key, values in last.items()},
            "teleports": log.summary(entry.key),
        }
        for number, entry in enumerate(entries)
    ]
    say(f"{images.name}, {name}, comparison: {len(entries)} settings with {len(seeds)} seeds")
    seconds = round(time.perf_counter() - began, 1)
    return {"epochs": size.compared, "seeds": len(seeds), "seconds": seconds, "tuning": table, "rows": rows}


def speeds(args: Namespace, build: Build, images: Images) -> dict[str, float]:
    """Milliseconds per step of SGD against the number of copies, the least of a few."""
    x, y = images.x_train[:BATCH], images.y_train[:BATCH]
    found = {}
    for count in (1, 2) if args.smoke else (1, 10, 40, 100):
        copies, times = Copies(build, range(count), [partial(torch.optim.SGD, lr=STEP_SIZE)], device=args.device), []
        for _ in range(6):
            began = time.perf_counter()
            copies.step(x[None], y[None])
            times.append(time.perf_counter() - began)
        found[str(count)] = 1000 * min(times)
    return found


def experiment(args: Namespace, images: Images) -> dict[str, Any]:
    """Everything about one data set."""
    size = LARGE if len(images.x_train) > LARGE_COUNT else SMALL
    images = images.head(*size.images)
    built = networks(images)
    counts = {part: len(getattr(images, f"x_{part}")) for part in ("train", "validation", "test")}
    content: dict[str, Any] = {"data": images.name, "images": counts, "batch": BATCH, "networks": {}}
    for name, build in built.items():
        content["networks"][name] = {
            **found_sites(build, images),
            "first_teleport": first_teleport(build, images, range(min(args.seeds, COMPARED_SEEDS))),
            "milliseconds": speeds(args, build, images),
        }
    for part, work in (("correlation", correlated), ("comparison", compared)):
        for name, build in built.items() if part in args.parts else ():
            content["networks"][name][part] = work(args, name, build, images, size)
    return content


def main() -> None:
    flags = parser("architectures", __doc__, ["digits"], SEEDS)
    flags.add_argument(
        "--parts", nargs="+", choices=("correlation", "comparison"), default=["correlation", "comparison"]
    )
    args, began = flags.parse_args(), time.perf_counter()
    if args.smoke:
        globals().update(SMOKE)
        args.seeds = min(args.seeds, SMOKE_SEEDS)
    results = [experiment(args, images) for images in images_of(args).values()]
    for name, figure in figures(results).items():
        save_figure(figure, args.out / f"architectures_{name}")
    text = markdown(results)
    write_atomically(args.out / "architectures.md", text.encode())
    print(text)
    write_results(args, "architectures", {"results": results}, began)


if __name__ == "__main__":
    run(main)
