"""Theorem 3.1: under SGD with a teleport before each step the largest gradient norm on the whole orbit tends to zero.

    w_{t+1} = g_t . w_t - eta grad L(g_t . w_t, xi_t),   g_t where |grad L|^2 is largest on the orbit,   t = 0 .. T - 1

For L(., xi) beta-smooth, sigma^2 = L(w*) - E inf L(., xi) and eta = 1 / (beta sqrt(T - 1)),

    min_t E max_g |grad L(g . w_t)|^2  <=  (2 beta E[L(w_0) - L(w*)] + beta sigma^2) / sqrt(T - 1),

because E |grad L(w, xi)|^2 <= 2 beta (L(w) - L(w*) + sigma^2) and beta-smoothness give, with D_t = E L(w_t) - L(w*),
D_{t+1} <= (1 + 1 / (T - 1)) D_t - eta E |grad L(g_t . w_t)|^2 + sigma^2 / (T - 1). For SGD alone the same holds at its
own points only; what is measured here for both is the largest gradient of the orbit: the least over t of its mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, jacrev, vmap

from experiments.lab.figures import COLOURS
from experiments.theory.landscapes import Landscape
from experiments.theory.statement import Statement
from meta_teleport.evaluation.statistics import bootstrap

TITLE = "Theorem 3.1: the largest gradient on the orbit along SGD"
HORIZONS, SEEDS, ANGLES = (10, 30, 100, 300, 1000, 3000), 64, 64
SMOKE: dict[str, Any] = {"horizons": (10, 30), "seeds": 4}
DIMENSION, CONDITION, NOISE = 10, 100.0, 0.5
PROBES = 4000


@dataclass(frozen=True)
class Problem:
    """Noise ``(seeds, n)`` from a generator, the gradient under it, the steepest point of the orbit of every ``w``
    ``(seeds, n)`` with its squared gradient norm, and the constants of the theorem."""

    name: str
    start: Tensor
    noise: Callable[[int, torch.Generator], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]
    steepest: Callable[[Tensor], tuple[Tensor, Tensor]]
    smoothness: float
    excess: float
    variance: float

    def bound(self, horizon: int) -> float:
        return self.smoothness * (2 * self.excess + self.variance) / sqrt(horizon - 1)


def quadratic(seeds: int, generator: torch.Generator) -> Problem:
    """``L(w, xi) = (w - xi)^T Q (w - xi) / 2``, Gaussian xi, whose mean has SO(n) orbits that fill the level sets."""
    values = torch.logspace(0, -torch.log10(torch.tensor(CONDITION)), DIMENSION, dtype=torch.float64)
    start = torch.randn(seeds, DIMENSION, generator=generator, dtype=torch.float64) * 3

    def steepest(w: Tensor) -> tuple[Tensor, Tensor]:
        squared = (values * w.square()).sum(1)
        point = torch.zeros_like(w)
        point[:, 0] = (squared / values[0]).sqrt()
        return point, values[0] * squared

    return Problem(
        f"quadratic, n = {DIMENSION}",
        start,
        lambda count, g: NOISE * torch.randn(count, DIMENSION, generator=g, dtype=torch.float64),
        lambda w, xi: values * (w - xi),
        steepest,
        float(values[0]),
        float((values * start.square()).sum(1).mean() / 2),
        float(NOISE**2 * values.sum() / 2),
    )


def valley(generator: torch.Generator) -> Landscape:
    """``h(x) = C asinh(A x)`` with A and C of condition 3: smooth, not convex, flat far out."""
    u, _, v = torch.linalg.svd(torch.randn(2, 2, 2, generator=generator, dtype=torch.float64))
    a, c = u @ torch.tensor([1.5, 0.5], dtype=torch.float64).diag() @ v
    a_inverse, c_inverse = torch.linalg.inv(a), torch.linalg.inv(c)
    return Landscape("asinh map", lambda x: c @ torch.asinh(a @ x), lambda u: a_inverse @ torch.sinh(c_inverse @ u))


def curved(seeds: int, generator: torch.Generator) -> Problem:
    """``L(w, xi) = |h(w) - xi|^2``, xi uniform on a circle; SO(2) orbits. Its smoothness is the largest of many."""
    landscape = valley(torch.Generator().manual_seed(1))
    start = 8 * (2 * torch.rand(seeds, 2, generator=generator, dtype=torch.float64) - 1)

    def noisy(w: Tensor, xi: Tensor) -> Tensor:
        return (landscape.h(w) - xi).square().sum()

    def noise(count: int, g: torch.Generator) -> Tensor:
        angle = torch.rand(count, generator=g, dtype=torch.float64) * (2 * torch.pi)
        return NOISE * torch.stack([angle.cos(), angle.sin()], 1)

    def steepest(w: Tensor) -> tuple[Tensor, Tensor]:
        point, peak = landscape.steepest(w, ANGLES)
        return point, peak.value

    probes = 3 * torch.randn(PROBES, 2, generator=generator, dtype=torch.float64)
    hessians = vmap(jacrev(grad(noisy)))(probes, noise(PROBES, generator))
    return Problem(
        "asinh map, n = 2",
        start,
        noise,
        vmap(grad(noisy)),
        steepest,
        float(torch.linalg.matrix_norm(hessians, 2).max()),
        float(vmap(landscape.loss)(start).mean()),
        NOISE**2,
    )


def descend(problem: Problem, horizon: int) -> tuple[Tensor, Tensor]:
    """The largest squared gradient norm on the orbit of w_t, and that at w_t itself: ``(horizon, 2, seeds)``, with
    teleports and without, under the same noise."""
    generator = torch.Generator().manual_seed(horizon)
    seeds, size = len(problem.start), 1 / (problem.smoothness * sqrt(horizon - 1))
    w = problem.start.repeat(2, 1)
    teleported = torch.arange(2 * seeds).unsqueeze(1) < seeds
    largest, own = [], []
    for _ in range(horizon):
        point, value = problem.steepest(w)
        largest.append(value)
        own.append(problem.gradient(w, torch.zeros_like(w)).square().sum(1))
        w = torch.where(teleported, point, w)
        w = w - size * problem.gradient(w, problem.noise(seeds, generator).repeat(2, 1))
    return torch.stack(largest).unflatten(1, (2, seeds)), torch.stack(own).unflatten(1, (2, seeds))


def measure(problem: Problem, horizon: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    largest, own = descend(problem, horizon)
    row: dict[str, Any] = {"problem": problem.name, "T": horizon, "bound": problem.bound(horizon)}
    for name, values in zip(("teleports", "none"), largest.unbind(1), strict=True):
        best = values[values.mean(1).argmin()]
        row[f"orbit's largest, {name}"] = float(best.mean())
        row[f"interval, {name}"] = list(bootstrap(best, generator))
    return row | {"own, none": float(own[:, 1].mean(1).min())}


def run(smoke: bool) -> Statement:
    horizons, seeds = (SMOKE["horizons"], SMOKE["seeds"]) if smoke else (HORIZONS, SEEDS)
    generator = torch.Generator().manual_seed(0)
    problems = [quadratic(seeds, generator), curved(seeds, generator)]
    return Statement(TITLE, [measure(problem, horizon) for problem in problems for horizon in horizons])


def draw(statement: Statement, figure: Figure) -> None:
    names = list(dict.fromkeys(row["problem"] for row in statement.rows))
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        rows = [row for row in statement.rows if row["problem"] == name]
        horizons = [row["T"] for row in rows]
        axes.plot(horizons, [row["bound"] for row in rows], "k--", label="bound of the theorem")
        for colour, key in zip(COLOURS, ("teleports", "none"), strict=False):
            values = [row[f"orbit's largest, {key}"] for row in rows]
            low, high = zip(*(row[f"interval, {key}"] for row in rows), strict=True)
            axes.plot(horizons, values, "o-", color=colour, label=f"largest on the orbit, {key}", markersize=4)
            axes.fill_between(horizons, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(horizons, [row["own, none"] for row in rows], "^:", color=COLOURS[1], label="own, none", markersize=4)
        axes.set(xscale="log", yscale="log", xlabel="steps T", title=name)
    legend = figure.axes[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", fontsize=8, ncols=4, frameon=False)
    figure.axes[0].set_ylabel("squared gradient norm")
