"""Do sharpness and curvature of a minimum tell how well it generalises? (Zhao et al. 2024, Table 1, Figures 9 and 10)

Many copies of one network are trained from different seeds, by SGD as published; then their sharpness and the curvature
of their orbits are correlated with their test loss, with what the test loss is above the training loss (the gap), and
with the test loss at equal training loss (partial correlation). The published measures stand beside ones over the whole
sphere of directions.

The distances t of the published sharpness are so small that it is nearly the loss on the images it is taken on. So
what is left of it without that loss is shown, too, and sharpness at greater distances, forth and back along directions
of the whole sphere: 0.1 to 0.9, those of the paper's searches, and 1 to 5.

    python -m experiments.correlation.run --data mnist fashion_mnist --own-order mnist

trains each data set in the order of its files, as published, and those under --own-order once more with every seed's
images shuffled. Stop it at any time: the same command goes on from there.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.correlation.report import markdown, plot
from experiments.lab.correlations import correlations
from experiments.lab.image_training import Curves, Plan, train
from experiments.lab.measures import (
    FAR_SCALES,
    Measure,
    both_ways,
    curvature,
    gaussian,
    loss,
    measured,
    published_curvature,
    sharpness,
)
from experiments.lab.progress import say
from experiments.lab.script import finish, image_parser, images_of, run
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.tasks.images import Images, Order
from meta_teleport.teleportation.objectives import SEARCH_SCALES

SEEDS = 100
EPOCHS, BATCH = 40, 20
MEASURED_BATCH = 200
SHARPNESS_BATCHES, WIDE_BATCHES, CURVATURE_BATCHES = 200, 100, 60
SCALES = tuple(1 + 10 * i for i in range(20))
"""Published distances t, in units of ``Setting.finest``."""


@dataclass(frozen=True)
class Setting:
    """Published settings of one data set: hidden widths, step size, the smallest distance of sharpness.

    ``seeds`` and ``epochs`` at most and the ``part`` of the batches that measures are taken on keep large networks
    affordable; so does how many seeds are trained ``together``, where all weights would not fit into a cache.
    """

    hidden: tuple[int, int]
    step: float
    finest: float
    seeds: int = SEEDS
    epochs: int = EPOCHS
    part: float = 1.0
    together: int = SEEDS


MNIST = Setting((16, 10), 1e-2, 1e-3)
FASHION_MNIST = Setting((16, 10), 1e-2, 1e-4)
CIFAR10 = Setting((128, 32), 2e-2, 1e-4, seeds=40, epochs=20, part=0.1, together=10)
CIFAR10_SIZE = 3072
SMOKE = {"EPOCHS": 3, "SHARPNESS_BATCHES": 2, "WIDE_BATCHES": 2, "CURVATURE_BATCHES": 2}
SMOKE_SEEDS = 12


def setting_of(images: Images) -> Setting:
    """By the size of an image and the name of the data set."""
    if images.x_train[0].numel() == CIFAR10_SIZE:
        return CIFAR10
    return FASHION_MNIST if images.name == "fashion_mnist" else MNIST


def measures_of(copies: Ensemble, setting: Setting) -> dict[str, tuple[Measure, int]]:
    """All measures by name, each with its number of batches; the loss on the images of each, too."""
    fine = tuple(setting.finest * scale for scale in SCALES)
    near, wide, bent = (max(2, round(setting.part * n)) for n in (SHARPNESS_BATCHES, WIDE_BATCHES, CURVATURE_BATCHES))
    a, b = (mlp_symmetry(copies.model, action) for action in ("general_linear", "pseudo_inverse"))  # type: ignore[arg-type]
    return {
        "loss": (loss(copies), near),
        "sharpness, published": (sharpness(copies, fine, nonnegative=True, fresh=True), near),
        "sharpness, sphere": (sharpness(copies, fine, nonnegative=False, fresh=True), near),
        "sharpness, t to 0.9": (sharpness(copies, both_ways(SEARCH_SCALES), nonnegative=False), wide),
        "sharpness, t to 5": (sharpness(copies, both_ways(FAR_SCALES), nonnegative=False), wide),
        "curvature, published": (published_curvature(copies, a), near),
        "curvature, action (a)": (curvature(copies, a, gaussian), bent),
        "curvature, action (b)": (curvature(copies, b, gaussian), bent),
    }


def trained(
    images: Images,
    plan: Plan,
    build: Callable[[], MLP],
    seeds: Sequence[int],
    step: float,
    together: int,
    folder: Path,
    label: str,
) -> tuple[Ensemble, Curves]:
    """All seeds trained by SGD, so many together as one program, with one file of progress each."""

    def started(own: Sequence[int]) -> Ensemble:
        return Ensemble(build, own, [partial(torch.optim.SGD, lr=step)], device=images.x_train.device)

    whole, parts = started(seeds), []
    for start in range(0, len(seeds), together):
        group = started(seeds[start : start + together])
        name = f"{label}, seeds {group.seeds[0]} to {group.seeds[-1]}"
        parts.append(train(group, images, plan, label=name, keep=folder / f"training-{start}.safetensors"))
        for parameter, p in whole.params.items():
            p.data[start : start + together] = group.params[parameter].detach()
    train_loss, test, accuracy = (torch.cat([curves[i] for curves in parts], 1) for i in range(3))
    return whole, Curves(train_loss, test, accuracy, torch.stack([curves.seconds for curves in parts]).sum(0))


def examine(args: argparse.Namespace, images: Images, order: Order) -> dict[str, Any]:
    """Trains all seeds on one data set, measures them, and correlates."""
    label, setting = f"{images.name}, {order} order", setting_of(images)
    folder = args.out / f"{images.name}-{order}"
    seeds = range(min(args.seeds, setting.seeds))
    widths = (images.x_train.shape[1], *setting.hidden, images.classes)
    plan = Plan(min(setting.epochs, EPOCHS), BATCH, order)
    copies, curves = trained(images, plan, lambda: MLP(widths), seeds, setting.step, setting.together, folder, label)
    speed = rate(curves, copies.count, len(images.x_train) // BATCH)
    say(f"{label}: {copies.count} seeds trained for {plan.epochs} epochs, {speed:.0f} seed-steps per second")
    kept = folder / "measures.safetensors"
    batches, seconds = measured(measures_of(copies, setting), images, MEASURED_BATCH, kept, label)
    say(f"{label}: measured in {seconds:.0f} s")
    fitted = copies.evaluate(images.x_train, images.y_train)[0]
    found = correlations(fitted.cpu(), curves.test[-1], batches)
    head = {
        "data": images.name,
        "order": order,
        "images": {part: len(getattr(images, f"x_{part}")) for part in ("train", "test")},
        "widths": widths,
        "step_size": setting.step,
        "epochs": plan.epochs,
        "batch": BATCH,
        "seeds": copies.count,
        "distances": [setting.finest * scale for scale in SCALES],
        "measured_batch": MEASURED_BATCH,
        "batches": {name: len(rows) for name, rows in batches.items()},
        "seed_steps_per_second": speed,
        "training_seconds": float(curves.seconds.sum()),
        "measuring_seconds": seconds,
        "test_accuracy": summary(curves.accuracy[-1]),
        "mean_curves": {part: getattr(curves, part).mean(1).tolist() for part in ("train", "test")},
    }
    return {**head, **found}


def rate(curves: Curves, copies: int, steps: int) -> float:
    """Seed-steps per second: the steps of all copies over the seconds of all epochs."""
    return copies * steps * (len(curves.seconds) - 1) / float(curves.seconds.sum())


def summary(values: Tensor) -> dict[str, float]:
    """Mean and standard deviation over the seeds."""
    return {"mean": float(values.mean()), "std": float(values.std())}


def main() -> None:
    flags = image_parser("correlation", __doc__, ["mnist", "fashion_mnist"], SEEDS)
    flags.add_argument(
        "--own-order", nargs="*", default=[], metavar="DATA", help="names of data sets to train in shuffled orders, too"
    )
    flags.add_argument("--own-order-only", action="store_true", help="those of --own-order in shuffled orders alone")
    args = flags.parse_args()
    if args.smoke:
        globals().update(SMOKE)
        args.seeds = min(args.seeds, SMOKE_SEEDS)
    sets = {name: images.flat for name, images in images_of(args).items()}
    left = args.own_order if args.own_order_only else []
    wanted: list[tuple[Images, Order]] = [(images, "sequential") for name, images in sets.items() if name not in left]
    wanted += [(images, "own") for name, images in sets.items() if name in args.own_order]
    results = [examine(args, images, order) for images, order in wanted]
    figures = {f"correlation_{kind}": plot(results, kind) for kind in ("sharpness", "curvature")}
    finish(args, {"runs": results}, markdown(results), figures)


if __name__ == "__main__":
    run(main)
