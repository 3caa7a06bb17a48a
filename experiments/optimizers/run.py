"""First-order optimizers with and without teleports, on images: Figures 5 and 13 of Zhao et al. 2024.

AdaGrad, SGD with momentum, RMSprop, Adam and SGD train an MLP with LeakyReLU (0.1). Before each of the first 8 steps of
one epoch the weights are teleported to raise the gradient norm, on a fresh batch of 200, by 10 steps. The variants, and
the controls among them, are those of ``teleport_variants``. All of them, and all runs of each, are one batched program.

    published   the published step sizes
    tuned       the step size of every method and variant with the lowest loss on the validation images, same grid

    python -m experiments.optimizers.run                                     MNIST and Fashion-MNIST, both parts
    python -m experiments.optimizers.run --data cifar10 --parts published    CIFAR-10

Ctrl-C stops at the end of an epoch; the same command goes on from there.
"""

from argparse import Namespace
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch

from experiments.lab.image_training import Plan
from experiments.lab.progress import say
from experiments.lab.script import finish, image_parser, images_of, run
from experiments.optimizers.bench import Bench, Entry, Method, Teleports
from experiments.optimizers.report import markdown, plot
from experiments.optimizers.step_timing import seconds_per
from experiments.optimizers.variants import NAMES
from meta_teleport.models import MLP
from meta_teleport.tasks.images import Images

SEEDS, BATCH, PARTS = 5, 20, ("published", "tuned")
WIDTHS, WIDE, WIDE_INPUTS, WIDE_FACTOR = (16, 10), (128, 32), 3072, 2.0
"""Hidden widths; for CIFAR-10 wider ones, and step sizes twice those of ``methods``."""


@dataclass(frozen=True)
class Sizes:
    """How long to run: epochs of the published and the tuned part, and of the runs that step sizes are chosen by; step
    sizes tried, in units of the published ones; the teleports; seconds per burst of what is timed."""

    published: int = 40
    tuned: int = 10
    tuning: int = 3
    grid: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0)
    teleports: Teleports = field(default_factory=Teleports)
    burst_s: float = 0.3


SMOKE = Sizes(published=3, tuned=3, tuning=3, grid=(1.0, 10.0), teleports=Teleports(count=2, steps=3), burst_s=0.01)


def methods(device: str) -> tuple[Method, ...]:
    """The optimizers with their published settings; on the CPU one kernel per step where there is one, as small steps
    are mostly overhead."""
    fused = True if device == "cpu" else None
    return (
        Method("AdaGrad", partial(torch.optim.Adagrad, fused=fused), 1e-2, 2, 1e-4),
        Method("momentum", partial(torch.optim.SGD, momentum=0.9, fused=fused), 1e-3, 0, 5e-2),
        Method("RMSprop", torch.optim.RMSprop, 1e-4, 0, 5e-2),
        Method("Adam", partial(torch.optim.Adam, fused=fused), 1e-4, 0, 5e-2),
        Method("SGD", partial(torch.optim.SGD, fused=fused), 1e-2, 2, 1e-4),
    )


def build(images: Images) -> MLP:
    """The network for these images."""
    inputs = images.x_train.shape[1]
    return MLP((inputs, *(WIDE if inputs == WIDE_INPUTS else WIDTHS), images.classes))


def entries_of(images: Images, names: list[str]) -> list[Entry]:
    """Every method in every variant at its published step size. SGD has no state that could be reset."""
    factor = WIDE_FACTOR if images.x_train.shape[1] == WIDE_INPUTS else 1.0
    pairs = product(methods(images.x_train.device.type), names)
    return [Entry(m, v, factor * m.lr) for m, v in pairs if (m.name, v) != ("SGD", "state reset")]


def experiment(images: Images, args: Namespace, sizes: Sizes) -> dict[str, Any]:
    """Everything about one data set."""
    images, folder, seeds = images.flat, args.out / images.name, range(args.seeds)
    bench, entries = Bench(partial(build, images), images, sizes.teleports), entries_of(images, args.variants)
    content: dict[str, Any] = {"data": images.name, "seeds": args.seeds, "widths": build(images).widths}
    content |= {"images": {"train": len(images.x_train), "test": len(images.x_test)}}
    content |= {"steps_per_epoch": len(images.x_train) // BATCH}
    content["seconds_per"] = seconds_per(bench, entries, BATCH, sizes.burst_s, folder / "seconds.json")
    for part in args.parts:
        if part == "tuned":
            plan = Plan(sizes.tuning, BATCH, "sequential")
            entries, content["tuning"] = bench.tune(entries, sizes.grid, plan, folder / "tuning.safetensors")
        plan = Plan(getattr(sizes, part), BATCH, "sequential")
        content[part] = bench.compare(entries, seeds, plan, folder / f"{part}.safetensors")
        say(f"{images.name}, {part} step sizes: {len(entries)} x {args.seeds} runs in {content[part]['seconds']:.0f} s")
    return content


def main() -> None:
    made = image_parser("optimizers", __doc__, ("mnist", "fashion_mnist"), SEEDS)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: both")
    made.add_argument("--variants", nargs="+", choices=NAMES, default=list(NAMES), help="default: all")
    made.add_argument("--epochs", type=int, help=f"of the published part; default: {Sizes.published}")
    args = made.parse_args()
    sizes = SMOKE if args.smoke else Sizes()
    sizes = replace(sizes, published=args.epochs or sizes.published)
    results = [experiment(images, args, sizes) for images in images_of(args).values()]
    text = "\n".join(markdown(content, part) for content, part in product(results, args.parts))
    figures = {f"optimizers-{c['data']}-{part}": plot(c, part) for c, part in product(results, args.parts)}
    finish(args, {"results": results}, text, figures)


if __name__ == "__main__":
    run(main)
