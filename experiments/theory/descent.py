"""Ellipse, Rosenbrock and Booth functions with SO(2): gradient descent after one teleport to the steepest point of the
orbit, after one to a random point, and after none.

The step size is tuned on a grid for every function and teleport by itself: one for all starts (on other starts than
those reported, by the mean log loss over all steps), and, beside it, the best in hindsight for every single start.
"""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap

from experiments.lab.figures import COLOURS, shades
from experiments.theory.landscapes import Landscape, ellipse, plane
from experiments.theory.statement import Statement
from meta_teleport.evaluation.statistics import bootstrap, log10

TITLE = "Gradient descent after one teleport"
STEPS, STARTS = 100, 128
SMOKE: dict[str, Any] = {"steps": 20, "starts": 4}
SIZES = 10 ** torch.linspace(-8, 0, 65, dtype=torch.float64)
DIVERGED = 1e12
CHECKPOINTS = (1, 10, 30, 100)
TELEPORTS = ("none", "random", "steepest")


def starts(landscape: Landscape, count: int, seed: int) -> dict[str, Tensor]:
    """The same starts, where they are, at random and at the steepest points of their orbits."""
    generator = torch.Generator().manual_seed(seed)
    x = landscape.starts(count, generator)
    return {"none": x, "random": landscape.turned(x, generator), "steepest": landscape.steepest(x)[0]}


def descend(landscape: Landscape, x: Tensor, size: Tensor, steps: int) -> Tensor:
    """Losses ``(steps + 1, tasks)`` of gradient descent with one step size per task; a diverged one stays DIVERGED."""
    loss, gradient = vmap(landscape.loss), vmap(landscape.gradient)
    losses = [loss(x)]
    for _ in range(steps):
        x = x - size.unsqueeze(1) * gradient(x)
        losses.append(loss(x))
    return torch.nan_to_num(torch.stack(losses), nan=DIVERGED, posinf=DIVERGED).clamp(max=DIVERGED)


def scan(landscape: Landscape, x: Tensor, steps: int) -> Tensor:
    """Log losses ``(steps + 1, sizes, tasks)`` for every step size of the grid and every start, in one run."""
    losses = descend(landscape, x.repeat(len(SIZES), 1), SIZES.repeat_interleave(len(x)), steps)
    return log10(losses).unflatten(1, (len(SIZES), len(x)))


def measure(landscape: Landscape, steps: int, count: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Any]] = []
    curves, hindsight = {}, {}
    tuning, held_out = starts(landscape, count, 1), starts(landscape, count, 2)
    for name in TELEPORTS:
        size = SIZES[scan(landscape, tuning[name], steps).mean((0, 2)).argmin()]
        losses = scan(landscape, held_out[name], steps)
        curves[name] = losses[:, size == SIZES].squeeze(1)
        hindsight[name] = losses[-1].min(0).values
        row: dict[str, Any] = {"function": landscape.name, "teleport": name, "step size": float(size)}
        row["curvature"] = float(torch.linalg.matrix_norm(vmap(landscape.hessian)(held_out[name]), 2).median())
        curvature = torch.linalg.matrix_norm(vmap(landscape.hessian)(held_out[name]), 2)
        row["curvature"] = float(curvature.median())
        row |= {f"step {step}": float(curves[name][step].median()) for step in CHECKPOINTS if step <= steps}
        for key, ends in (("less none", {n: c[-1] for n, c in curves.items()}), ("hindsight, less none", hindsight)):
            row[key] = float((ends[name] - ends["none"]).mean())
            row[f"{key}: interval"] = list(bootstrap(ends[name] - ends["none"], generator))
        rows.append(row)
    return rows, curves


def run(smoke: bool) -> Statement:
    steps, count = (SMOKE["steps"], SMOKE["starts"]) if smoke else (STEPS, STARTS)
    functions = (ellipse(), plane("booth"), plane("rosenbrock"))
    measured = {function.name: measure(function, steps, count) for function in functions}
    return Statement(
        TITLE, [row for rows, _ in measured.values() for row in rows], {n: c for n, (_, c) in measured.items()}
    )


def draw(statement: Statement, figure: Figure) -> None:
    for axes, (name, curves) in zip(figure.subplots(1, len(statement.curves)), statement.curves.items(), strict=True):
        for colour, line, (teleport, losses) in zip(COLOURS, ("-", "--", "-"), curves.items(), strict=False):
            shades(axes, range(len(losses)), losses, label=teleport, color=colour, linestyle=line)
        axes.set(xlabel="step", title=name)
    figure.axes[0].set_ylabel("log10 loss: median, 10 % to 90 %")
    figure.axes[0].legend(title="teleport", fontsize=8)
