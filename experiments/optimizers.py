"""First-order optimizers with and without teleports, on images: Figures 5 and 13 of Zhao et al. 2024.

AdaGrad, SGD with momentum, RMSprop, Adam and SGD train an MLP with LeakyReLU (0.1). Before each of the first 8 steps of
one epoch the weights are teleported to raise the gradient norm, on a fresh batch of 200, by 10 steps. The variants, and
the controls among them, are those of ``teleport_variants``. All of them, and all runs of each, are one batched program.

    published   the published step sizes
    tuned       the step size of every method and variant with the lowest loss on the validation images, same grid

    python experiments/optimizers.py                                     MNIST and Fashion-MNIST, both parts
    python experiments/optimizers.py --data cifar10 --parts published    CIFAR-10

Ctrl-C stops at the end of an epoch; the same command goes on from there.
"""

import time
from argparse import Namespace
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from image_cli import images_of, parser, run, save_figure, say, write_results
from image_training import BeforeStep, Curves, Plan, train
from optimizers_report import markdown, plot
from step_timing import seconds_per
from teleport_log import TeleportLog
from teleport_variants import NAMES, PLAIN, variants

from meta_teleport.models import MLP
from meta_teleport.optimizers.copies import Copies
from meta_teleport.optimizers.settings import Factory
from meta_teleport.tasks.images import Images

SEEDS, BATCH = 5, 20
EPOCHS, SMOKE_EPOCHS = {"published": 40, "tuned": 20, "tuning": 4}, 3
TELEPORTS, TELEPORT_BATCH, TELEPORT_STEPS = 8, 200, 10
SCALING_SIZE = 0.03
"""Length of a step along the scalings: the best of 0.01, 0.03 and 0.1 on MNIST's validation images after one epoch."""

WIDTHS, WIDE, WIDE_INPUTS, WIDE_FACTOR = (16, 10), (128, 32), 3072, 2.0
"""Hidden widths; for CIFAR-10 wider ones, and step sizes twice those below."""

TUNING_SEEDS, GRID = (100, 101), (0.3, 1.0, 3.0, 10.0, 30.0)
"""Step sizes tried, in units of the published ones."""


@dataclass(frozen=True)
class Method:
    """An optimizer with its published step size; it teleports in epoch ``epoch``, the published search by steps of
    ``size``."""

    name: str
    optimizer: Any
    lr: float
    epoch: int
    size: float


def methods(device: str) -> tuple[Method, ...]:
    """The optimizers; one kernel per step where there is one, which is most of the time of a small step on the CPU."""
    fused = True if device == "cpu" else None
    return (
        Method("AdaGrad", partial(torch.optim.Adagrad, fused=fused), 1e-2, 2, 1e-4),
        Method("momentum", partial(torch.optim.SGD, momentum=0.9, fused=fused), 1e-3, 0, 5e-2),
        Method("RMSprop", torch.optim.RMSprop, 1e-4, 0, 5e-2),
        Method("Adam", partial(torch.optim.Adam, fused=fused), 1e-4, 0, 5e-2),
        Method("SGD", partial(torch.optim.SGD, fused=fused), 1e-2, 2, 1e-4),
    )


@dataclass(frozen=True)
class Entry:
    """One method in one variant at one step size."""

    method: Method
    variant: str
    lr: float

    @property
    def factory(self) -> Factory:
        """What makes its optimizer."""
        return partial(self.method.optimizer, lr=self.lr)

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.method.name} | {self.variant} | {self.lr:g}"


def entries_of(images: Images, device: str, names: list[str]) -> list[Entry]:
    """Every method in every variant at its published step size. SGD has no state that could be reset."""
    factor = WIDE_FACTOR if images.x_train.shape[1] == WIDE_INPUTS else 1.0
    pairs = product(methods(device), names)
    return [Entry(m, v, factor * m.lr) for m, v in pairs if (m.name, v) != ("SGD", "state reset")]


def build(images: Images) -> MLP:
    """The network for these images."""
    inputs = images.x_train.shape[1]
    return MLP((inputs, *(WIDE if inputs == WIDE_INPUTS else WIDTHS), images.classes))


def train_entries(
    entries: list[Entry], seeds: tuple[int, ...], images: Images, plan: Plan, keep: Path, validation: bool = False
) -> tuple[Curves, TeleportLog]:
    """Trains all entries with all seeds, each teleported as it says."""
    copies = Copies(partial(build, images), seeds, [e.factory for e in entries], device=images.x_train.device)
    log = TeleportLog(keep.with_suffix(".json"), [e.key for e in entries])
    curves = train(
        copies,
        images,
        plan,
        label=keep.stem,
        keep=keep,
        before_step=_teleports(copies, entries, images, log),
        validation=validation,
    )
    return curves, log


def _teleports(copies: Copies, entries: list[Entry], images: Images, log: TeleportLog) -> BeforeStep:
    model = build(images)
    ways = {m: variants(model, m.size, SCALING_SIZE, TELEPORT_STEPS) for m in {e.method for e in entries}}

    def before_step(epoch: int, step: int) -> None:
        if step >= TELEPORTS:
            return
        index = torch.arange(step * TELEPORT_BATCH, (step + 1) * TELEPORT_BATCH) % len(images.x_train)
        x, y = images.x_train[index], images.y_train[index]
        for number, entry in enumerate(entries):
            if entry.variant != PLAIN and entry.method.epoch == epoch:
                way = ways[entry.method][entry.variant]
                log.add(entry.key, step, copies.teleport(number, way.symmetry, way.search(step), x, y, way.state))
        log.save()

    return before_step


def tuned(entries: list[Entry], images: Images, epochs: int, folder: Path) -> tuple[list[Entry], list[dict[str, Any]]]:
    """The entries at the step sizes that are best on the validation images, and what was tried."""
    tried = [replace(entry, lr=factor * entry.lr) for entry in entries for factor in GRID]
    plan = Plan(epochs, BATCH, "sequential")
    curves, _ = train_entries(tried, TUNING_SEEDS, images, plan, folder / "tuning.safetensors", validation=True)
    losses = curves.test[-1].reshape(len(entries), len(GRID), len(TUNING_SEEDS)).mean(2).nan_to_num(nan=torch.inf)
    best = losses.argmin(1).tolist()
    table = [
        {
            "method": entry.method.name,
            "variant": entry.variant,
            "grid": list(GRID),
            "best": number,
            "loss": row.tolist(),
        }
        for entry, number, row in zip(entries, best, losses, strict=True)
    ]
    return [replace(entry, lr=GRID[number] * entry.lr) for entry, number in zip(entries, best, strict=True)], table


def part(entries: list[Entry], images: Images, args: Namespace, epochs: int, keep: Path) -> dict[str, Any]:
    """All entries trained with all seeds, as rows: means over the runs per epoch, and every run's last epoch."""
    plan = Plan(epochs, BATCH, "sequential")
    curves, log = train_entries(entries, tuple(range(args.seeds)), images, plan, keep)
    rows = []
    for number, entry in enumerate(entries):
        own = slice(number * args.seeds, (number + 1) * args.seeds)
        columns = {"train": curves.train[:, own], "test": curves.test[:, own], "accuracy": curves.accuracy[:, own]}
        row = {"method": entry.method.name, "variant": entry.variant, "lr": entry.lr, "epoch": entry.method.epoch}
        row |= {"mean": {key: column.mean(1).tolist() for key, column in columns.items()}}
        row |= {"last": {key: column[-1].tolist() for key, column in columns.items()}}
        rows.append({**row, "teleports": log.summary(entry.key)})
    return {"epochs": epochs, "seconds": float(curves.seconds.sum()), "rows": rows}


def experiment(images: Images, args: Namespace) -> dict[str, Any]:
    """Everything about one data set."""
    images, folder = images.flat, args.out / images.name
    entries = entries_of(images, args.device, args.variants)
    content: dict[str, Any] = {"data": images.name, "seeds": args.seeds, "widths": build(images).widths}
    content |= {"images": {"train": len(images.x_train), "test": len(images.x_test)}}
    content["batches"] = len(images.x_train) // BATCH
    content["seconds_per"] = seconds_per(
        {e.method.name: e.factory for e in entries},
        variants(build(images), 5e-2, SCALING_SIZE, TELEPORT_STEPS),
        partial(build, images),
        images,
        (BATCH, TELEPORT_BATCH),
        folder / "seconds.json",
    )
    if "published" in args.parts:
        content["published"] = part(entries, images, args, args.published_epochs, folder / "published.safetensors")
        say(f"{images.name}, published settings: {content['published']['seconds']:.0f} s")
    if "tuned" in args.parts:
        entries, content["tuning"] = tuned(entries, images, args.tuning_epochs, folder)
        content["tuned"] = part(entries, images, args, args.tuned_epochs, folder / "tuned.safetensors")
        say(f"{images.name}, tuned step sizes: {content['tuned']['seconds']:.0f} s")
    return content


def main() -> None:
    made = parser("optimizers", __doc__, ("mnist", "fashion_mnist"), SEEDS)
    made.add_argument("--parts", nargs="+", choices=("published", "tuned"), default=["published", "tuned"])
    made.add_argument("--variants", nargs="+", choices=NAMES, default=list(NAMES), help="default: all")
    for name, epochs in EPOCHS.items():
        made.add_argument(f"--{name}-epochs", type=int, default=epochs, help="default: %(default)s")
    args, began = made.parse_args(), time.perf_counter()
    if args.smoke:
        vars(args).update({f"{name}_epochs": SMOKE_EPOCHS for name in EPOCHS})
    results = [experiment(images, args) for images in images_of(args).values()]
    for content, name in product(results, args.parts):
        save_figure(plot(content, name), args.out / f"optimizers-{content['data']}-{name}")
    text = "\n".join(markdown(content, name) for content, name in product(results, args.parts))
    (args.out / "optimizers.md").write_text(text)
    print(text)
    write_results(args, "optimizers", {"results": results}, began)


if __name__ == "__main__":
    run(main)
