"""Tables and figures of correlation.py, the figures in the style of the paper's Figures 9 and 10."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.lab.figures import scatter
from experiments.lab.tables import interval_of, table

NAMES = {"digits": "digits", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
CIFAR10 = "CIFAR-10 (part)"
PANELS = {
    "sharpness": ("sharpness, published", "sharpness, published, less the loss", "sharpness, t to 5, less the loss"),
    "curvature": ("curvature, published", "curvature, action (a)", "curvature, action (b)"),
}
TARGETS = {"test": "test loss", "gap": "gap", "test_given_train": "test loss, training loss given"}
INTERVALS = {"ci95": "Fisher", "bootstrap_ci95": "bootstrap over seeds"}

Runs = list[dict[str, Any]]


def title(run: dict[str, Any]) -> str:
    """The data set, and the order of its images where it is not the published one."""
    name = CIFAR10 if run["data"].startswith("cifar10") else NAMES.get(run["data"], run["data"])
    return name if run["order"] == "sequential" else f"{name}, {run['order']} order"


def markdown(runs: Runs) -> str:
    """What was trained, and the correlations with both kinds of intervals."""
    tables = [
        f"**Pearson's r, 95 % intervals ({kind})**\n\n{_correlations(runs, key)}" for key, kind in INTERVALS.items()
    ]
    return "\n\n".join([f"**Training**\n\n{_training(runs)}", *tables]) + "\n"


def _training(runs: Runs) -> str:
    header = [
        "data",
        "images",
        "network",
        "seeds",
        "epochs",
        "training loss",
        "test loss",
        "accuracy",
        "seed-steps/s",
        "minutes",
    ]
    lines = []
    for run in runs:
        accuracy = run["test_accuracy"]
        lines.append(
            [
                title(run),
                f"{run['images']['train']:,} + {run['images']['test']:,}",
                "-".join(map(str, run["widths"])),
                f"{run['seeds']}" + (f" ({run['left_out']} left out)" if run["left_out"] else ""),
                f"{run['epochs']}",
                _spread(run["training_loss"]),
                _spread(run["test_loss"]),
                f"{accuracy['mean']:.4f} ± {accuracy['std']:.4f}",
                f"{run['seed_steps_per_second']:,.0f}",
                f"{run['training_seconds'] / 60:.1f} + {run['measuring_seconds'] / 60:.1f}",
            ]
        )
    return table(header, lines)


def _correlations(runs: Runs, interval: str) -> str:
    lines = [
        [
            title(run),
            name,
            *(interval_of(found.get(target), interval) for target in TARGETS),
            f"{found['reliability']:.3f}" if "reliability" in found else "",
        ]
        for run in runs
        for name, found in run["measures"].items()
    ]
    return table(["data", "measure", *TARGETS.values(), "reliability"], lines)


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def plot(runs: Runs, kind: str) -> Figure:
    """One panel per measure of this kind and run: every seed's test loss against its measure, with the fitted line."""
    names = PANELS[kind]
    figure = Figure(figsize=(2.5 * len(runs), 2.1 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), len(runs), squeeze=False)
    for line, name in zip(grid, names, strict=True):
        for axes, run in zip(line, runs, strict=True):
            scatter(axes, run, name)
        line[0].set_ylabel("test loss")
    for axes, run in zip(grid[0], runs, strict=True):
        axes.set_title(f"{title(run)}\n{axes.get_title()}", fontsize=9)
    return figure
