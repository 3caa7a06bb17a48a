"""How long should a step of the search along the scalings be in optimizers.py? Chosen on validation images.

The optimizers with their published step sizes train with teleports along exact scalings, whose search takes steps of
each length on a grid, for a few epochs from seeds that no other part uses. Chosen is the length with the lowest mean,
over optimizers and seeds, of log(validation loss / that of the plain optimizer). No test image is looked at.

    python -m experiments.optimizers.scaling_lengths --data mnist

Ctrl-C stops at the end of an epoch; the same command goes on from there.
"""

from argparse import Namespace
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

from torch import Tensor

from experiments.lab.image_training import Plan
from experiments.lab.intervals import student
from experiments.lab.script import finish, image_parser, images_of, run
from experiments.lab.tables import interval, titled
from experiments.optimizers.bench import Bench, Entry, Teleports
from experiments.optimizers.run import BATCH, build, entries_of
from experiments.optimizers.variants import PLAIN
from meta_teleport.tasks.images import Images

SEEDS, FIRST_SEED, EPOCHS, SMOKE_EPOCHS = 10, 200, 5, 3
LENGTHS = (0.01, 0.03, 0.1)
ALL = "all"


def losses(images: Images, args: Namespace, epochs: int, variant: str, length: float) -> dict[str, Tensor]:
    """Validation losses ``(seeds,)`` after the last epoch, by optimizer."""
    bench = Bench(partial(build, images), images, replace(Teleports(), scaling_size=length))
    entries: list[Entry] = entries_of(images, [variant])
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    keep = args.out / images.name / f"{variant}-{length:g}.safetensors"
    curves, _ = bench.run(entries, seeds, Plan(epochs, BATCH, "sequential"), keep, validation=True)
    last = curves.test[-1].reshape(len(entries), args.seeds)
    return {entry.method.name: row for entry, row in zip(entries, last, strict=True)}


def compared(plain: dict[str, Tensor], own: dict[str, Tensor], length: float) -> list[dict[str, Any]]:
    """log(loss / plain loss) with its interval: one row per optimizer, and one over all, paired by seed. A run that
    diverges makes its rows infinite."""
    ratios = {name: (own[name] / plain[name]).log().double().nan_to_num(nan=inf, posinf=inf) for name in plain}
    ratios[ALL] = sum(ratios.values()) / len(ratios)  # type: ignore[assignment]
    return [{"length": length, "optimizer": name, **_row(ratio)} for name, ratio in ratios.items()]


def _row(ratio: Tensor) -> dict[str, Any]:
    if not bool(ratio.isfinite().all()):
        return {"diverged": int((~ratio.isfinite()).sum()), "mean": None, "ci95": None}
    mean, low, high = student(ratio)
    return {"diverged": 0, "mean": mean, "ci95": [low, high]}


def chosen(rows: list[dict[str, Any]]) -> float:
    """The length with the lowest mean over all optimizers."""
    means = {row["length"]: row["mean"] for row in rows if row["optimizer"] == ALL}
    return float(min(means, key=lambda length: inf if means[length] is None else means[length]))


def markdown(content: dict[str, Any]) -> str:
    """One line per length, one column per optimizer."""
    names = list(dict.fromkeys(row["optimizer"] for row in content["rows"]))
    cells = {(row["length"], row["optimizer"]): _shown(row) for row in content["rows"]}
    lengths = dict.fromkeys(row["length"] for row in content["rows"])
    lines = [[f"{length:g}", *(cells[length, name] for name in names)] for length in lengths]
    title = (
        f"**{content['data']}**, log(validation loss / that of the plain optimizer) after {content['epochs']} epochs, "
        f"{content['seeds']} seeds, 95 % intervals; lowest over all: {content['chosen']:g}"
    )
    return titled(title, ["length", *names], lines)


def _shown(row: dict[str, Any]) -> str:
    if row["diverged"]:
        return f"{row['diverged']} diverged"
    return interval((row["mean"], *row["ci95"]), "+.4f")


def main() -> None:
    args = image_parser("scaling_lengths", __doc__, ("mnist",), SEEDS).parse_args()
    epochs, results = SMOKE_EPOCHS if args.smoke else EPOCHS, []
    for images in (images.flat for images in images_of(args).values()):
        plain = losses(images, args, epochs, PLAIN, LENGTHS[0])
        rows = [
            row
            for length in LENGTHS
            for row in compared(plain, losses(images, args, epochs, "scaling", length), length)
        ]
        content = {"data": images.name, "epochs": epochs, "seeds": args.seeds, "rows": rows}
        results.append({**content, "chosen": chosen(rows)})
    finish(args, {"results": results}, "\n".join(map(markdown, results)))


if __name__ == "__main__":
    run(main)
