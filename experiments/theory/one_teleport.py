"""When does one teleport make the whole gradient flow as steep as its orbits allow?

The flow starts at the steepest point of an orbit and is compared, level by level, with the steepest point of the orbit
that it has reached. Along it (f = |grad L|^2, m its largest value on the orbit, R the symmetry field per radian, A the
gradient flow), without units:

    slope     R f / m              0 where the point is critical on its orbit
    bracket   [A, R] f . L / m^2   vanishing of this one is the paper's sufficient condition
    drift     A R f . L / m^2      how fast the flow leaves the critical points: R A f and the bracket together

``gap`` is the mean over log L of ``1 - |grad L| / sqrt(m)``; ``teleports`` is how many it takes to stay within 1 %.

Two cases are decided by hand. If the group acts by affine maps, A R f = -[A, R] f everywhere (differentiate g . R = 0
along g = grad L): the bracket vanishes along the flow exactly if the flow stays critical. If the orbits fill the level
sets, H g = lambda g at a critical point, so that [A, R] f = 2 lambda g . [A, R] = 2 lambda R f = 0 there: the bracket
says nothing, and a flow that stays critical keeps its direction, so that it is a straight line. Critical is not yet
steepest: another critical point of the orbit may overtake.
"""

from dataclasses import dataclass
from math import log
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap

from experiments.lab.figures import COLOURS, MARKERS
from experiments.theory.brackets import derivative, gradient_flow, lie_bracket
from experiments.theory.examples import EXAMPLES, Example
from experiments.theory.landscapes import Landscape
from experiments.theory.statement import Statement
from meta_teleport.evaluation.statistics import bootstrap

TITLE = "When is one teleport enough?"
DECAY = 1e-4
STEPS, CHECKS, STARTS = 2000, 100, 32
SMOKE: dict[str, Any] = {"steps": 100, "checks": 4, "starts": 2}
WITHIN = 0.99
GAMMA = 1 + 0.5**0.5
LOWEST = 1e-17


@dataclass(frozen=True)
class Trajectory:
    """What was measured at equal distances in log L, each ``(checks + 1, starts)``; ``teleports`` is ``(starts,)``."""

    ratio: Tensor
    slope: Tensor
    bracket: Tensor
    drift: Tensor
    cosine: Tensor
    teleports: Tensor

    @property
    def gap(self) -> Tensor:
        return (1 - self.ratio).mean(0)


def follow(landscape: Landscape, x: Tensor, teleport_below: Tensor, steps: int, checks: int) -> Trajectory:
    """The gradient flow from ``x`` ``(starts, n)`` down to DECAY times its loss. A start is moved to the steepest point
    of its orbit wherever its gradient norm is less than ``teleport_below`` ``(starts,)`` times the largest one."""
    flow, f = gradient_flow(landscape.loss), landscape.squared_slope
    along = derivative(landscape.symmetry, f)
    functions = (along, derivative(lie_bracket(flow, landscape.symmetry), f), derivative(flow, along))
    first = vmap(landscape.gradient)(x)
    rows, teleports = [], torch.zeros(len(x))
    for check in range(checks + 1):
        level, (steepest, peak) = vmap(landscape.loss)(x), landscape.steepest(x)
        ratio = (vmap(f)(x) / peak.value).sqrt()
        slope, bracket, drift = (vmap(function)(x) for function in functions)
        cosine = torch.cosine_similarity(vmap(landscape.gradient)(x), first)
        scale = level / peak.value.square()
        rows.append(torch.stack([ratio, slope / peak.value, bracket * scale, drift * scale, cosine]))
        move = ratio < teleport_below
        teleports = teleports + move
        x = torch.where(move.unsqueeze(1), steepest, x)
        if check < checks:
            x = descend(landscape, x, steps // checks, -log(DECAY) / (steps // checks * checks))
    ratio, slope, bracket, drift, cosine = torch.stack(rows, 1)
    return Trajectory(ratio, slope, bracket, drift, cosine, teleports)


def descend(landscape: Landscape, x: Tensor, steps: int, size: float) -> Tensor:
    """The gradient flow with ``-log L`` as its time, by Verwer's second-order Rosenbrock method, whose linear system
    holds the Hessian: stable however narrow the valley."""

    def velocity(point: Tensor) -> Tensor:
        g = landscape.gradient(point)
        return -g * landscape.loss(point) / g.square().sum()

    def step(point: Tensor) -> Tensor:
        factor = GAMMA * size * landscape.loss(point) / landscape.squared_slope(point)
        matrix = torch.eye(len(point), dtype=point.dtype) + factor * landscape.hessian(point)
        first = torch.linalg.solve(matrix, velocity(point))
        second = torch.linalg.solve(matrix, velocity(point + size * first) - 2 * first)
        return point + size * (1.5 * first + 0.5 * second)

    for _ in range(steps):
        x = vmap(step)(x)
    return x


def measure(example: Example, steps: int, checks: int, starts: int) -> tuple[dict[str, Any], Tensor]:
    """One row, and the median over starts of |grad L| over the orbit's largest, per check, after one teleport."""
    generator = torch.Generator().manual_seed(0)
    landscape = example.landscape
    x = landscape.turned(example.starts(starts, generator), generator)
    steepest, _ = landscape.steepest(x)
    below = torch.tensor([0.0, 0.0, WITHIN]).repeat_interleave(starts)
    path = follow(landscape, torch.cat([steepest, x, steepest]), below, steps, checks)
    once, never = slice(0, starts), slice(starts, 2 * starts)
    teleports = 1 + path.teleports[2 * starts :]
    row = {
        "landscape": landscape.name,
        "orbits fill level sets": example.fills,
        "affine action": example.affine,
        "bracket at the start": float(path.bracket[0, once].abs().max()),
        "drift at the start": float(path.drift[0, once].abs().max()),
        "largest bracket": float(path.bracket[:, once].abs().max()),
        "largest slope": float(path.slope[:, once].abs().max()),
        "gap, one teleport": float(path.gap[once].mean()),
        "interval": list(bootstrap(path.gap[once], generator)),
        "gap, none": float(path.gap[never].mean()),
        "cosine of first and last gradient": float(path.cosine[-1, once].min()),
        "teleports needed": [int(teleports.min()), int(teleports.median()), int(teleports.max())],
    }
    return row, path.ratio[:, once].median(1).values


def run(smoke: bool) -> Statement:
    sizes = SMOKE if smoke else {"steps": STEPS, "checks": CHECKS, "starts": STARTS}
    measured = [measure(example, **sizes) for example in EXAMPLES]
    curves = {row["landscape"]: ratio for row, ratio in measured}
    return Statement(TITLE, [row for row, _ in measured], curves)


def draw(statement: Statement, figure: Figure) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    for i, (name, ratio) in enumerate(statement.curves.items()):
        levels = DECAY ** torch.linspace(0, 1, len(ratio))
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": "-" if i < len(COLOURS) else "--"}
        left.plot(levels, ratio, label=name, marker=MARKERS[i], markevery=(i * 3, 30), markersize=5, **style)
    left.set(xscale="log", xlabel="loss / loss at the teleport", ylabel="|grad L| / largest on the orbit")
    left.invert_xaxis()
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", fontsize=7, ncols=5, frameon=False)
    left.set_title("after one teleport to the steepest point", fontsize=9)
    rows = statement.rows
    places = range(len(rows), 0, -1)
    for label, key, marker in (("bracket", "bracket at the start", "o"), ("drift", "drift at the start", "x")):
        right.plot([max(row[key], LOWEST) for row in rows], places, marker, label=label, color=COLOURS[marker == "x"])
    right.set(xscale="log", xlabel="at the steepest point (no units)")
    right.set_yticks(places, [f"{row['landscape']}  {row['teleports needed'][1]}" for row in rows], fontsize=7)
    right.legend(fontsize=8)
    right.set_title("landscape, teleports needed (median)", fontsize=9)
