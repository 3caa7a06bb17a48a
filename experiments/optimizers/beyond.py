"""Optimizers past the paper with and without teleports: AdamW, Muon, L-BFGS and Levenberg-Marquardt.

AdamW and Muon train all runs side by side on batches of 20; L-BFGS and Levenberg-Marquardt one run at a time on large
batches. Every step size (the damping at the start of Levenberg-Marquardt) is chosen on the validation images, method by
method and variant by variant, from the same grid. Teleports: one before each of the first 8 steps.

    python -m experiments.optimizers.beyond                     the digits
    python -m experiments.optimizers.beyond --data mnist        MNIST

The same command goes on after a stop.
"""

import time
from argparse import Namespace
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch

from experiments.lab.image_training import Plan
from experiments.lab.progress import say
from experiments.lab.script import finish, image_parser, images_of, run
from experiments.optimizers.bench import TUNING_SEEDS, Bench, Entry, Method, Teleports
from experiments.optimizers.report import markdown, plot
from experiments.optimizers.run import build
from experiments.optimizers.single_runs import Single, lbfgs, levenberg_marquardt, row_of
from experiments.optimizers.variants import NAMES
from meta_teleport.cli.terminal import counting_bar
from meta_teleport.errors import UserError
from meta_teleport.optimizers.stacked import per_copy
from meta_teleport.tasks.images import Images

SEEDS, BATCH = 5, 20
GRID = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Step sizes tried, in units of those below."""

PUBLISHED_SIZE = 5e-2
EXACT = ("none", "scaling", "scaling, random", "state reset")


@dataclass(frozen=True)
class Sizes:
    """Epochs of the side-by-side runs and of those that choose a step size; steps of the single runs, and the images
    that one step of L-BFGS (at most) and of Levenberg-Marquardt sees; step sizes tried; the teleports."""

    epochs: int = 20
    tuning: int = 8
    steps: int = 40
    images: tuple[int, int] = (5000, 200)
    grid: tuple[float, ...] = GRID
    teleports: Teleports = field(default_factory=Teleports)


SMOKE = Sizes(2, 1, 4, (200, 40), (0.3, 1.0), Teleports(count=2, steps=3))


def side_by_side() -> list[Method]:
    """The optimizers that train many copies in one program. Raises ``UserError`` where torch has no Muon."""
    if not hasattr(torch.optim, "Muon"):
        raise UserError("this torch has no Muon: install torch 2.9 or later")
    return [
        Method("AdamW", torch.optim.AdamW, 3e-3, 0, PUBLISHED_SIZE),
        Method("Muon", torch.optim.Muon, 1e-2, 0, PUBLISHED_SIZE, per_copy),
    ]


def one_by_one() -> list[Method]:
    """The optimizers that train one network."""
    return [
        Method("L-BFGS", lbfgs, 1.0, 0, PUBLISHED_SIZE),
        Method("Levenberg-Marquardt", levenberg_marquardt, 0.1, 0, PUBLISHED_SIZE),
    ]


def single_part(bench: Bench, args: Namespace, sizes: Sizes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """L-BFGS and Levenberg-Marquardt: the rows, and what was tried. Levenberg-Marquardt has no state to reset."""
    methods = one_by_one()
    images = {m.name: n for m, n in zip(methods, sizes.images, strict=True)}
    entries = [Entry(m, v, m.lr) for m in methods for v in EXACT if (m is methods[0] or v != "state reset")]
    folder, began = args.out / bench.images.name / "single", time.perf_counter()
    rows, table = [], []
    with counting_bar(len(entries)) as show:
        for number, entry in enumerate(entries):
            show(number, f"{entry.method.name}, {entry.variant}")
            single = partial(Single, bench, batch=images[entry.method.name], steps=sizes.steps)
            losses = []
            for factor in sizes.grid:
                tried = [replace(entry, lr=factor * entry.lr)]
                runs = [single(e, seed, validation=True).result(folder) for e in tried for seed in TUNING_SEEDS]
                losses.append(sum(r["test"][-1] for r in runs) / len(runs))
            best = min(range(len(losses)), key=lambda i: losses[i] if losses[i] == losses[i] else float("inf"))
            chosen = replace(entry, lr=sizes.grid[best] * entry.lr)
            edge = best in (0, len(losses) - 1)
            table.append(
                {"method": entry.method.name, "variant": entry.variant, "lr": chosen.lr, "at_the_edge": edge}
                | {"factors": list(sizes.grid), "losses": losses}
            )
            rows.append(row_of(chosen, [single(chosen, seed).result(folder) for seed in range(args.seeds)]))
    seconds = round(time.perf_counter() - began, 1)
    return {"unit": "steps", "epochs": sizes.steps, "batch": images, "seconds": seconds, "rows": rows}, table


def experiment(images: Images, args: Namespace, sizes: Sizes) -> dict[str, Any]:
    """Everything about one data set."""
    images, folder = images.flat, args.out / images.name
    bench = Bench(partial(build, images), images, sizes.teleports)
    content: dict[str, Any] = {"data": images.name, "seeds": args.seeds, "widths": build(images).widths}
    content |= {"images": {"train": len(images.x_train), "test": len(images.x_test)}}
    content["large batches"], single_table = single_part(bench, args, sizes)
    say(f"{images.name}: L-BFGS and Levenberg-Marquardt in {content['large batches']['seconds']:.0f} s")
    entries = [Entry(m, v, m.lr) for m in side_by_side() for v in NAMES]
    plan = Plan(sizes.tuning, BATCH, "sequential")
    entries, table = bench.tune(entries, sizes.grid, plan, folder / "tuning.safetensors")
    plan = Plan(sizes.epochs, BATCH, "sequential")
    content["mini-batches"] = bench.compare(entries, range(args.seeds), plan, folder / "tuned.safetensors")
    say(f"{images.name}: AdamW and Muon in {content['mini-batches']['seconds']:.0f} s")
    return {**content, "tuning": table + single_table}


def main() -> None:
    args = image_parser("optimizers_beyond", __doc__, ("digits",), SEEDS).parse_args()
    sizes = SMOKE if args.smoke else Sizes()
    results = [experiment(images, args, sizes) for images in images_of(args).values()]
    shown = list(product(results, ("mini-batches", "large batches")))
    text = "\n".join(markdown(content, part) for content, part in shown)
    figures = {f"optimizers_beyond-{c['data']}-{part.replace(' ', '_')}": plot(c, part) for c, part in shown}
    finish(args, {"results": results}, text, figures)


if __name__ == "__main__":
    run(main)
