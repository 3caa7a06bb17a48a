"""Convex quadratics ``L(w) = w^T Q w / 2``: the steepest point of a level set lies along Q's top eigenvector, and one
teleport to it makes the whole gradient flow as steep as the level sets allow.

SO(n) acts by ``w -> Q^-1/2 R Q^1/2 w``, which fills the level sets. The largest gradient norm at loss L is
``sqrt(2 lambda_max L)``, at ``w = sqrt(2 L / lambda_max) v_max``.
"""

from math import log
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.lab.figures import COLOURS
from experiments.theory.statement import Statement
from meta_teleport.evaluation.statistics import bootstrap
from meta_teleport.symmetry.conjugate import ConjugateSite, PlaneSymmetry
from meta_teleport.symmetry.groups import Orthogonal
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.teleportation.ascent import ascend

TITLE = "Convex quadratics: one teleport gives the whole optimal trajectory"
CONDITION, STARTS, SEARCH_STEPS, DECAY = 100.0, 32, 400, 1e-4
DIMENSIONS = (2, 5, 10)
SMOKE: dict[str, Any] = {"dimensions": (2, 3), "starts": 3, "steps": 100}
LEVELS = 400


def spectrum(n: int) -> Tensor:
    return torch.logspace(0, -log(CONDITION, 10), n, dtype=torch.float64)


def random_quadratics(count: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eigenvectors ``(count, n, n)`` as columns, that of the largest eigenvalue first, and starts ``(count, n)``."""
    draws = torch.randn(count, n, n, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(draws)[0], torch.randn(count, n, generator=generator, dtype=torch.float64)


def symmetry(vectors: Tensor) -> PlaneSymmetry:
    """SO(n) on the level sets: turns of ``h(w) = (Lambda / 2)^1/2 V^T w``."""
    scale = (spectrum(vectors.shape[-1]) / 2).sqrt()

    def h(w: Tensor) -> Tensor:
        return scale * (vectors.mT @ w.unsqueeze(-1)).squeeze(-1)

    def h_inverse(u: Tensor) -> Tensor:
        return (vectors @ (u / scale).unsqueeze(-1)).squeeze(-1)

    return PlaneSymmetry((ConjugateSite("ellipsoid", Orthogonal(vectors.shape[-1]), (), (), h, h_inverse),))


def loss(w: Tensor, vectors: Tensor) -> Tensor:
    return ((vectors.mT @ w.unsqueeze(-1)).squeeze(-1).square() * spectrum(w.shape[-1])).sum(-1) / 2


def gradient(w: Tensor, vectors: Tensor) -> Tensor:
    coordinates = (vectors.mT @ w.unsqueeze(-1)).squeeze(-1)
    return (vectors @ (spectrum(w.shape[-1]) * coordinates).unsqueeze(-1)).squeeze(-1)


def teleport(w: Tensor, vectors: Tensor, steps: int) -> Tensor:
    """The search of the package, which does not know the answer."""
    inputs = LayerInput(w.new_ones(len(w), 1, 1))
    found = ascend(symmetry(vectors), {"x": w}, inputs, lambda p: loss(p["x"], vectors), steps=steps, size=0.5)
    return found.params["x"]


def steepness(w: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Along the gradient flow from ``w`` down to DECAY of its loss: |grad L| over the largest one at the same loss,
    and the loss over that of the start, each ``(LEVELS, starts)``."""
    n = w.shape[-1]
    values = spectrum(n)
    coordinates = (vectors.mT @ w.unsqueeze(-1)).squeeze(-1)
    start = loss(w, vectors)
    levels = DECAY ** torch.linspace(0, 1, LEVELS, dtype=torch.float64)
    times = time_to(levels.unsqueeze(1) * start, coordinates, values)
    moved = coordinates * (-values * times.unsqueeze(-1)).exp()
    reached = (values * moved.square()).sum(-1) / 2
    return ((values * moved).square().sum(-1) / (2 * values[0] * reached)).sqrt(), times


def time_to(level: Tensor, coordinates: Tensor, values: Tensor) -> Tensor:
    """When the flow passes ``level`` ``(levels, starts)``: Newton's method on log L, which is convex and falls."""
    time = torch.zeros_like(level)
    for _ in range(60):
        squares = values * (coordinates * (-values * time.unsqueeze(-1)).exp()).square()
        here = squares.sum(-1) / 2
        time = time + (here / level).log() * here / (values * squares).sum(-1)
    return time


def measure(n: int, starts: int, steps: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(n)
    vectors, w = random_quadratics(starts, n, generator)
    teleported = teleport(w, vectors, steps)
    rows, curves = [], {}
    for name, point in (("none", w), ("to the steepest point", teleported)):
        ratio, times = steepness(point, vectors)
        gap = (1 - ratio).mean(0)
        optimal = -log(DECAY) / (2 * float(spectrum(n)[0]))
        rows.append(
            {
                "dimensions": n,
                "teleport": name,
                "steepness at the start": float(ratio[0].min()),
                "cosine with the top eigenvector": float(
                    (point * vectors[..., 0]).sum(-1).abs().div(point.norm(dim=-1)).min()
                ),
                "gap along the flow": float(gap.mean()),
                "interval": list(bootstrap(gap, generator)),
                "time / shortest time (median)": float((times[-1] / optimal).median()),
            }
        )
        curves[name] = ratio.median(1).values
    return rows, curves


def run(smoke: bool) -> Statement:
    dimensions, starts, steps = SMOKE.values() if smoke else (DIMENSIONS, STARTS, SEARCH_STEPS)
    measured = {f"n = {n}": measure(n, starts, steps) for n in dimensions}
    rows = [row for rows, _ in measured.values() for row in rows]
    return Statement(TITLE, rows, {name: curves for name, (_, curves) in measured.items()})


def draw(statement: Statement, figure: Figure) -> None:
    axes = figure.subplots()
    levels = DECAY ** torch.linspace(0, 1, LEVELS)
    for colour, (size, curves) in zip(COLOURS, statement.curves.items(), strict=False):
        for (name, ratio), line in zip(curves.items(), (":", "-"), strict=True):
            axes.plot(levels, ratio, line, color=colour, label=f"{size}, {name}")
    axes.set(xscale="log", xlabel="loss / loss at the start", ylabel="|grad L| / largest at this loss")
    axes.invert_xaxis()
    axes.legend(fontsize=8)
