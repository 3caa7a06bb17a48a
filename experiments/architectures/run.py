"""Teleports past MLPs: a CNN with BatchNorm, a ResNet and a transformer of a few thousand parameters each.

Which symmetries does detection find in them, do teleports along these help SGD, momentum, Adam and AdamW, and does the
curvature of their orbits tell how well a minimum generalises? Two parts:

    correlation   100 seeds of SGD: Pearson's r of sharpness and curvature with the test loss and the gap
    comparison    every optimizer with and without teleports, step sizes chosen on the validation images for each

    python -m experiments.architectures.run                                   both, on the digits
    python -m experiments.architectures.run --data mnist                      on 6000 images of MNIST, as many steps

The networks of all seeds and settings are one batched program. Stop it at any time: the same command goes on.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import meta_teleport as mt
from experiments.architectures.report import figures, markdown
from experiments.architectures.training import (
    SEARCH,
    TUNING,
    Build,
    Case,
    Entry,
    Method,
    entries_of,
    train_entries,
    tuned,
)
from experiments.lab.correlations import correlations
from experiments.lab.image_teleports import randomized
from experiments.lab.image_training import Plan, train
from experiments.lab.measures import FAR_SCALES, both_ways, curvature, gaussian, loss, measured, sharpness
from experiments.lab.networks import networks
from experiments.lab.progress import say
from experiments.lab.script import finish, image_parser, images_of, run
from meta_teleport.optimizers.ensemble import Ensemble, Search
from meta_teleport.params import dot, value_and_grad
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.images import Images
from meta_teleport.teleportation.objectives import SEARCH_SCALES

BATCH, TELEPORT_BATCH = 20, 200
SEEDS, COMPARED_SEEDS, TUNING_SEEDS = 100, 12, (1000, 1001)
METHODS = (
    Method("SGD", torch.optim.SGD, (0.03, 0.1, 0.3)),
    Method("momentum", partial(torch.optim.SGD, momentum=0.9), (0.01, 0.03, 0.1)),
    Method("Adam", torch.optim.Adam, (0.001, 0.003, 0.01)),
    Method("AdamW", torch.optim.AdamW, (0.001, 0.003, 0.01)),
)
STEP_SIZE = 0.1
"""Of SGD where correlations are measured."""
NEAR = tuple(0.001 + 0.01 * i for i in range(20))
"""Distances of sharpness as published for MNIST."""
DIRECTIONS, NEAR_DIRECTIONS = 40, 20
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
    "METHODS": (Method("Adam", torch.optim.Adam, (0.003, 0.01)),),
    "SMALL": Size((120, 60), 2, 2, 1),
    "COMPARED_SEEDS": 3,
    "TUNING_SEEDS": (1000,),
    "DIRECTIONS": 4,
    "NEAR_DIRECTIONS": 4,
    "TELEPORT_BATCH": 50,
}
SMOKE_SEEDS = 6


def detected(build: Build, images: Images) -> tuple[Symmetry, dict[str, Any]]:
    """What detection finds in a network: the sites with a Lie algebra, and all of it in words, with the largest
    relative change of the outputs over random elements."""
    model = build().double()
    x = images.x_train[:BATCH].cpu().double()
    symmetry = mt.find_symmetries(model, x)
    moved = {name for site in symmetry.continuous.sites for name in site.parameters}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return symmetry.continuous, {
        "parameters": sum(sizes.values()),
        "moved": sum(sizes[name] for name in moved),
        "sites": [str(site) for site in symmetry.sites],
        "refusals": [[list(names), reason] for names, reason in symmetry.refusals],
        "drift": mt.verify(model, symmetry, x),
    }


def first_teleport(case: Case, seeds: Sequence[int]) -> dict[str, float]:
    """How many times larger one teleport makes the squared gradient norm at the initial weights, the geometric mean
    over seeds: the search, and as far in a random direction."""
    x, y = case.images.x_train[:TELEPORT_BATCH], case.images.y_train[:TELEPORT_BATCH]

    def growth(search: Search) -> float:
        copies = Ensemble(case.build, seeds, [partial(torch.optim.SGD, lr=0.0)], device=x.device)
        before = _squared_gradient(copies, x, y)
        copies.teleport(0, case.symmetry, search, x, y)
        return float((_squared_gradient(copies, x, y) / before).log().mean().exp())

    return {"search": growth(SEARCH), "random": growth(randomized(SEARCH, 0))}


def _squared_gradient(copies: Ensemble, x: Tensor, y: Tensor) -> Tensor:
    buffers = {name: b.clone() for name, b in copies.buffers.items()}
    _, gradients = value_and_grad(partial(copies.losses, x[None], y[None], buffers=buffers), copies.params)
    return dot(gradients, gradients)


def correlated(args: Namespace, case: Case, size: Size) -> dict[str, Any]:
    """Trains all seeds by SGD, measures them in evaluation mode, and correlates."""
    images, label = case.images, f"{case.images.name}, {case.name}, correlation"
    copies = Ensemble(case.build, range(args.seeds), [partial(torch.optim.SGD, lr=STEP_SIZE)], device=args.device)
    plan = Plan(size.correlated, BATCH, "own")
    curves = train(copies, images, plan, label=label, keep=case.folder / "correlation.safetensors")
    copies.model.eval()
    measures = {
        "loss": (loss(copies), DIRECTIONS),
        "sharpness, t 0.001 to 0.191": (sharpness(copies, NEAR, nonnegative=False), NEAR_DIRECTIONS),
        "sharpness, t to 0.9": (sharpness(copies, both_ways(SEARCH_SCALES), nonnegative=False), DIRECTIONS),
        "sharpness, t to 5": (sharpness(copies, both_ways(FAR_SCALES), nonnegative=False), DIRECTIONS),
        "curvature": (curvature(copies, case.symmetry, gaussian), DIRECTIONS),
    }
    batches, seconds = measured(measures, images, BATCH, case.folder / "measures.safetensors", label)
    trained = copies.evaluate(images.x_train, images.y_train)[0].cpu()
    say(f"{label}: {copies.count} seeds trained in {float(curves.seconds.sum()):.0f} s, measured in {seconds:.0f} s")
    accuracy = curves.accuracy[-1]
    return {
        "epochs": size.correlated,
        "step_size": STEP_SIZE,
        "training_seconds": float(curves.seconds.sum()),
        "measuring_seconds": seconds,
        "accuracy": {"mean": float(accuracy.mean()), "std": float(accuracy.std())},
        "directions": {key: len(rows) for key, rows in batches.items()},
        **correlations(trained, curves.test[-1], batches),
    }


def compared(args: Namespace, case: Case, size: Size) -> dict[str, Any]:
    """All optimizers in all variants at tuned step sizes: final losses of every seed."""
    plan = Plan(size.compared, BATCH, "shared")
    entries = entries_of(METHODS, size.every)

    def tune(tried: list[Entry]) -> Tensor:
        return train_entries(case, tried, TUNING_SEEDS, plan, TUNING, TELEPORT_BATCH).last["test"]

    entries, table = tuned(entries, METHODS, tune)
    seeds = range(min(args.seeds, COMPARED_SEEDS))
    last, seconds, log = train_entries(case, entries, seeds, plan, "comparison", TELEPORT_BATCH)
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
    say(
        f"{case.images.name}, {case.name}, comparison: {len(entries)} settings with {len(seeds)} seeds, {seconds:.0f} s"
    )
    return {"epochs": size.compared, "seeds": len(seeds), "seconds": seconds, "tuning": table, "rows": rows}


def speeds(args: Namespace, case: Case) -> dict[str, float]:
    """Milliseconds of processor time per step of SGD against the number of copies, the least of a few."""
    x, y = case.images.x_train[:BATCH], case.images.y_train[:BATCH]
    found = {}
    for count in (1, 2) if args.smoke else (1, 10, 40, 100):
        copies = Ensemble(case.build, range(count), [partial(torch.optim.SGD, lr=STEP_SIZE)], device=args.device)
        times = []
        for _ in range(6):
            began = time.process_time()
            copies.step(x[None], y[None])
            times.append(time.process_time() - began)
        found[str(count)] = 1000 * min(times)
    return found


def experiment(args: Namespace, images: Images) -> dict[str, Any]:
    """Everything about one data set."""
    size = LARGE if len(images.x_train) > LARGE_COUNT else SMALL
    images = images.head(*size.images)
    found: dict[str, Any] = {}
    cases = []
    for name, build in networks(images).items():
        symmetry, found[name] = detected(build, images)
        cases.append(Case(name, build, images, symmetry, args.out / images.name / name))
        found[name]["first_teleport"] = first_teleport(cases[-1], range(min(args.seeds, COMPARED_SEEDS)))
        found[name]["milliseconds"] = speeds(args, cases[-1])
    for part, work in PARTS.items():
        for case in cases if part in args.parts else ():
            found[case.name][part] = work(args, case, size)
    counts = {part: len(getattr(images, f"x_{part}")) for part in ("train", "validation", "test")}
    return {"data": images.name, "images": counts, "batch": BATCH, "networks": found}


PARTS = {"correlation": correlated, "comparison": compared}


def main() -> None:
    flags = image_parser("architectures", __doc__, ["digits"], SEEDS)
    flags.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = flags.parse_args()
    if args.smoke:
        globals().update(SMOKE)
        args.seeds = min(args.seeds, SMOKE_SEEDS)
    results = [experiment(args, images) for images in images_of(args).values()]
    drawn = {f"architectures_{name}": figure for name, figure in figures(results).items()}
    finish(args, {"results": results}, markdown(results), drawn)


if __name__ == "__main__":
    run(main)
