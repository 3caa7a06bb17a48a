"""Do teleports to lower or higher sharpness or curvature change how a network generalises? (Zhao et al. 2024, Figure 4)

An MLP is trained by SGD for 20 epochs from many seeds; each of these runs then goes on in as many variants as there are
below, which share its weights and see the same batches: without teleport, with the published teleports and with exact
scalings to lower and to raise sharpness and curvature, and with random teleports of the same size. What is compared is
the test loss, paired by seed. As the published action does not keep the loss, the training loss right before and right
after stands beside it.

The second part asks how often one should teleport: once, or every 10, 5, 2, 1 epochs from epoch 10 on.

    python -m experiments.generalization.run                               both parts
    python -m experiments.generalization.run --data cifar10 --frequency    fewer variants, the first part alone
    python -m experiments.generalization.run --variants "limited, curvature lower"    these variants alone, beside none

Ctrl-C stops at the end of an epoch; the same command goes on from there.
"""

from argparse import Namespace
from dataclasses import replace
from typing import Any

from experiments.generalization.branches import branches
from experiments.generalization.figures import plot_branches, plot_frequencies
from experiments.generalization.frequency import frequencies
from experiments.generalization.report import markdown
from experiments.generalization.runs import CIFAR10_SIZE, SMOKE_EPOCHS, Epochs, base_runs, setting_of
from experiments.generalization.statistics import compared_branches, compared_frequencies, strict
from experiments.generalization.teleports import LIMITED, PUBLISHED, SCALING, Variant
from experiments.lab.script import finish, image_parser, images_of, run
from meta_teleport.errors import UserError
from meta_teleport.tasks.images import Images

SEEDS, FREQUENCY_SEEDS = 20, 5
DIRECTIONS = {"search": 3, "probe": 10, "frequency": 1}
"""Random directions per batch that a search, a probe, and a search of the second part average over."""
FEWER_DIRECTIONS = {"search": 1, "probe": 4, "frequency": 1}
"""On CIFAR-10, whose network is far larger."""
SMOKE_SEEDS, SMOKE_DIRECTIONS = 3, 1

RANDOM = (
    Variant("published", "sharpness", "lower", random=True),
    Variant("limited", "curvature", "raise", random=True),
    Variant("scaling", "sharpness", "lower", random=True),
)
VARIANTS, FEWER = (*PUBLISHED, *LIMITED, *SCALING, *RANDOM), PUBLISHED
"""What goes on from every run; on CIFAR-10 fewer."""
SMOKE_VARIANTS, SMOKE_OFTEN = (PUBLISHED[1], LIMITED[1], SCALING[0], RANDOM[2]), SCALING[2:]
OFTEN = (*PUBLISHED[:2], *LIMITED, *SCALING)
"""What the second part looks at: the curvature steps of published size end runs at once."""


def experiment(images: Images, args: Namespace) -> dict[str, Any]:
    """Everything about one data set."""
    images, folder = images.flat, args.out / images.name
    epochs = SMOKE_EPOCHS if args.smoke else Epochs()
    large = images.x_train.shape[1] == CIFAR10_SIZE
    counts = FEWER_DIRECTIONS if large else DIRECTIONS
    looks = {name: SMOKE_DIRECTIONS if args.smoke else count for name, count in counts.items()}
    base = base_runs(images, range(args.seeds), epochs, folder)
    setting = setting_of(images)
    content: dict[str, Any] = {
        "data": images.name,
        "images": {"train": len(images.x_train), "test": len(images.x_test)},
        "widths": [images.x_train.shape[1], *setting.hidden, images.classes],
        "lr": setting.lr,
        "published_sizes": setting.sizes,
    }
    every = (SMOKE_VARIANTS, SMOKE_OFTEN) if args.smoke else (FEWER if large else VARIANTS, OFTEN)
    chosen, often = ([variant for variant in known if variant.name in args.variants] for known in every)
    told = branches(images, base[epochs.branch], chosen, epochs, (looks["search"], looks["probe"]), folder)
    at = {epochs.branch + 1, epochs.branch + (epochs.end - epochs.branch) // 4, epochs.end}
    content["branches"] = {**told, "differences": compared_branches(told, sorted(at))}
    for row in told["rows"]:
        row["train"] = [sum(losses) / len(losses) for losses in row["train"]]
    if often and images.name in args.frequency:
        seeds = min(FREQUENCY_SEEDS, args.seeds)
        told = frequencies(images, base[epochs.early], often, epochs, seeds, looks["frequency"], folder)
        content["frequency"] = {**told, "differences": compared_frequencies(told)}
    return content


def main() -> None:
    made = image_parser("generalization", __doc__, ("mnist", "fashion_mnist"), SEEDS)
    made.add_argument(
        "--frequency", nargs="*", default=["fashion_mnist"], help="data sets of the second part, if in --data"
    )
    names = [variant.name for variant in VARIANTS]
    made.add_argument("--variants", nargs="+", default=names, choices=names, metavar="NAME", help=f"of {names}")
    args = made.parse_args()
    for variant in RANDOM:
        if variant.name in args.variants and replace(variant, random=False).name not in args.variants:
            raise UserError(f"'{variant.name}' goes as far as the one it controls: give that to --variants, too")
    if args.smoke:
        args.seeds, args.frequency = min(args.seeds, SMOKE_SEEDS), ["digits"]
    results = [experiment(images, args) for images in images_of(args).values()]
    figures = {f"generalization_{content['data']}": plot_branches(content) for content in results}
    figures |= {
        f"generalization_{content['data']}_frequency": plot_frequencies(content)
        for content in results
        if "frequency" in content
    }
    finish(args, {"results": strict(results)}, markdown(results), figures)


if __name__ == "__main__":
    run(main)
