"""Tables and figure of the estimators: held-out errors, learned step lengths, gradients at one point."""

from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import t as student
from torch import Tensor

from experiments.estimators.training import ES, FULL, PES, TRUNCATED
from experiments.lab.intervals import compare_over_seeds

COLOURS = {TRUNCATED: "#D55E00", FULL: "#0072B2", ES: "#E69F00", PES: "#009E73"}
MARGIN = 0.05


def life(errors: Tensor) -> Tensor:
    """The geometric mean over the steps of a life of errors ``(..., steps + 1, tasks)``, as the meta-loss has it."""
    return errors[..., 1:, :].log().mean(-2).exp()


def compared(errors: Tensor, other: Tensor | None = None) -> dict[str, Any]:
    """log10 of errors ``(seeds, tasks)``, or of their ratio to ``other``, with t intervals over seeds and tasks."""
    found = compare_over_seeds(errors, torch.ones_like(errors[:1]) if other is None else other)
    return {"log10": found["log10_ratio"], "ci95": found["ci95"]}


def mean_and_interval(values: Tensor) -> dict[str, float]:
    """Mean, half the width of its 95 % t interval, and standard deviation of one estimate, from ``(estimates,)``."""
    half = float(student.ppf(0.975, len(values) - 1)) * float(values.std()) / len(values) ** 0.5
    return {"mean": float(values.mean()), "half": half, "std": float(values.std())}


def _shown(row: dict[str, Any]) -> str:
    return f"{row['log10']:+.3f} [{row['ci95'][0]:+.3f}, {row['ci95'][1]:+.3f}]"


def _lengths(row: dict[str, Any]) -> str:
    return "{:.3f} to {:.4f}".format(*row["lengths"])


def markdown(results: dict[str, Any]) -> str:
    """The table of the estimators, and the one of the gradients."""
    lines = [
        "| estimator | updates | rate | step length, first to last | mean over a life, above the best schedule's | "
        "at the horizon | above the best schedule's | above full back-propagation's | seconds |",
        "|---" * 9 + "|",
    ]
    for name, row in results["estimators"].items():
        numbers = " | ".join(_shown(row[key]) for key in ("life_above_best", "end", "end_above_best"))
        above_full = "" if name == FULL else _shown(row["end_above_full"])
        lines.append(
            f"| {name} | {row['updates']} | {row['rate']:g} | {_lengths(row)} | {numbers} | {above_full} | "
            f"{row['seconds']:.0f} |"
        )
    best = results["best"]
    lines.append(f"| best schedule of a grid | | | {_lengths(best)} | | {_shown(best['end'])} | | | |")
    lines += ["", "| estimator | d / d a | of one life | d / d b | of one life |", "|---|---|---|---|---|"]
    for name, pair in results["gradients"].items():
        cells = " | ".join(f"{g['mean']:+.4f} ± {g['half']:.4f} | {g['std']:.4f}" for g in pair)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(11.0, 3.8), layout="constrained")
    schedules, descent, training = figure.subplots(1, 3)
    steps = torch.linspace(0, 1, results["plan"]["horizon"] + 1, dtype=torch.float64)
    for name, row in results["estimators"].items():
        colour = COLOURS[name]
        for a, b in row["ends"]:
            schedules.plot(steps * (len(steps) - 1), torch.exp(a + (b - a) * steps), color=colour, linewidth=1)
        descent.plot(row["median"], color=colour, label=name)
        curves = torch.tensor(row["during"])  # (seeds, checkpoints + 1)
        at = torch.linspace(0, results["plan"]["budget"], curves.shape[1])
        training.plot(at, curves.median(0).values, color=colour, label=name)
        training.fill_between(at, curves.amin(0), curves.amax(0), color=colour, alpha=0.2, linewidth=0)
    best = results["best"]
    a, b = best["ends"]
    schedules.plot(steps * (len(steps) - 1), torch.exp(a + (b - a) * steps), "--", color="black", linewidth=1)
    descent.plot(best["median"], "--", color="black", linewidth=1, label="best schedule of a grid")
    training.axhline(best["life"]["log10"], linestyle="--", color="black", linewidth=1)
    schedules.set(yscale="log", xlabel="step", ylabel="step length", title="learned schedules, all meta-seeds")
    descent.set(yscale="log", xlabel="step", ylabel="error / initial", title="held-out tasks, median")
    training.set(
        xlabel="task-steps of meta-training",
        ylabel="log10 error, mean over a life",
        title="meta-seeds: median and range",
        ylim=(best["life"]["log10"] - MARGIN, float(curves[0, 0]) + MARGIN),  # what fails lies far above
    )
    for panel in (schedules, descent, training):
        panel.grid(alpha=0.3)
    figure.legend(*descent.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure
