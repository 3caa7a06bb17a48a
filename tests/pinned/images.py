"""The core of the experiments on images, small: the training loop, teleports as published and exact, probes, tuning."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pinned.store import Values
from torch import Tensor
from torch.optim import SGD, Adam
from waves import placed, wave

import meta_teleport as mt
from experiments.generalization.branches import branches
from experiments.generalization.frequency import frequencies
from experiments.generalization.probes import probe
from experiments.generalization.runs import Epochs
from experiments.generalization.statistics import compared_branches, compared_frequencies
from experiments.generalization.teleports import LIMITED, PUBLISHED, SCALING, Teleports
from experiments.lab import correlations as correlation_statistics
from experiments.lab import measures
from experiments.lab.image_training import Plan, train
from experiments.optimizers.bench import Bench, Entry, Method
from experiments.optimizers.bench import Teleports as Schedule
from experiments.optimizers.single_runs import Single, lbfgs, levenberg_marquardt
from experiments.optimizers.variants import NAMES, variants
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.tasks.images import Images

WIDTHS = (64, 8, 6, 10)
DIRECTIONS = 2


def digits(train: int, rest: int = 40) -> Images:
    return mt.load_images("digits").flat.head(train, rest).to("cpu", torch.float64)


def build(widths: Sequence[int] = WIDTHS) -> MLP:
    """A network whose weights depend on torch's seed by a formula."""
    return placed(MLP(widths), 20 * (torch.initial_seed() % 1000), 1.5)


def copies_of(settings: int = 1, seeds: int = 2) -> Ensemble:
    return Ensemble(build, range(seeds), [partial(SGD, lr=0.1)] * settings)


def some(copies: Ensemble, setting: int = 0) -> Tensor:
    """A few weights of every copy of one setting."""
    return torch.cat([p.detach()[copies.settings[setting].rows].flatten(1)[:, :4] for p in copies.params.values()])


def training() -> Values:
    """Losses and accuracies of two epochs, with batches that all seeds share and with their own."""
    found: Values = {}
    for order in ("shared", "own"):
        copies = Ensemble(build, (0, 1), [partial(SGD, lr=0.1, momentum=0.9), partial(Adam, lr=1e-2)])
        curves = train(copies, digits(100), Plan(2, 20, order, first=1))  # type: ignore[arg-type]
        found[order] = {"train": curves.train, "test": curves.test, "accuracy": curves.accuracy, "end": some(copies, 1)}
    return found


def teleports() -> Values:
    """What every teleport of the comparisons of optimizers and of generalization does to two networks."""
    images, found = digits(100), {}
    x, y = images.x_train[:50], images.y_train[:50]
    ways: dict[str, Any] = {
        name: (way.symmetry, way.search(3), way.state) for name, way in variants(build(), 0.05, 0.03, 4).items()
    }
    sizes = {"sharpness lower": 5e-2, "sharpness raise": 5e-2, "curvature lower": 1e-2, "curvature raise": 1e-2}
    moves = Teleports(build(), sizes, DIRECTIONS)
    ways |= {v.name: (moves.symmetry(v), moves.search(v, 3), "keep") for v in (*PUBLISHED, *LIMITED, *SCALING)}
    for name, (symmetry, search, state) in ways.items():
        copies = copies_of()
        jump = copies.teleport(0, symmetry, search, x, y, state)
        found[name] = {"before": jump.before, "after": jump.after, "size": jump.size, "weights": some(copies)}
    return found


def probes() -> Values:
    """What stands behind a test loss, and the measures of the correlations."""
    copies, images = copies_of(), digits(100)
    symmetry = mlp_symmetry(build(), "general_linear")
    scales = [0.1, 0.5]
    wanted = {
        "loss": (measures.loss(copies), 2),
        "sharpness": (measures.sharpness(copies, scales, nonnegative=False), 2),
        "sharpness, published": (measures.sharpness(copies, scales, nonnegative=True, fresh=True), 2),
        "curvature": (measures.curvature(copies, symmetry, measures.gaussian), 2),
        "curvature, published": (measures.published_curvature(copies, symmetry), 2),
    }
    with TemporaryDirectory() as folder:
        measured, _ = measures.measured(wanted, images, 6, Path(folder) / "kept.safetensors", "")
    return {"generalization": probe(copies, images, 20, DIRECTIONS), "correlation": measured}


def correlations() -> Values:
    """Correlations, plain and partial, with both intervals, and reliabilities, of twelve invented seeds."""
    train, noise = wave(12, seed=1).abs(), wave(5, 12, seed=2)
    batches = {"loss": train + 0.1 * noise[:4], "sharpness": 2 * train + 0.3 * noise[:4], "curvature": noise[1:]}
    return correlation_statistics.correlations(train, train + 0.2 * noise[4], batches)


def generalization() -> Values:
    """Both parts of the experiment, with its paired differences, from two networks."""
    images, epochs = digits(200, 20), Epochs(1, 1, 2)
    base = Ensemble(partial(build, (64, 16, 10, 10)), (0, 1), [partial(SGD, lr=0.3)])
    chosen = (PUBLISHED[2], SCALING[3])
    with TemporaryDirectory() as folder:
        found = branches(images, base, chosen, epochs, (1, 1), Path(folder))
        often = frequencies(images, base, PUBLISHED[2:3], epochs, 2, 1, Path(folder))
    rows = [{key: row[key] for key in ("variant", "test", "train", "probes")} for row in found["rows"]]
    compared = {"branches": compared_branches(found, [2]), "frequencies": compared_frequencies(often)}
    return {"rows": rows, "compared": compared}


def tuning() -> Values:
    """Optimizers in all variants, tuned and compared, and the two that train one network at a time."""
    bench = Bench(build, digits(100), Schedule(count=1, batch=30, steps=2, scaling_size=0.1))
    plan, method = Plan(2, 20), Method("Adam", Adam, 1e-2, 1, 5e-2)
    with TemporaryDirectory() as folder:
        keep = Path(folder)
        best, tried = bench.tune([Entry(method, NAMES[3], 1e-2)], (0.1, 1.0), plan, keep / "tune.safetensors")
        entries = [Entry(method, name, 1e-2) for name in (NAMES[0], NAMES[1], NAMES[4])]
        rows = bench.compare(entries, (0, 1), plan, keep / "compare.safetensors")["rows"]
        singly = {
            f"{name} | {variant}": Single(bench, Entry(Method(name, make, lr, 0, 0.05), variant, lr), 0, 60, 2).result(
                keep
            )
            for name, make, lr in (("L-BFGS", lbfgs, 1.0), ("Levenberg-Marquardt", levenberg_marquardt, 0.1))
            for variant in (NAMES[0], NAMES[3])
        }
    shown = [{key: row[key] for key in ("variant", "last", "mean")} for row in rows]
    return {"best": best[0].lr, "tried": tried, "rows": shown, "alone": singly}
