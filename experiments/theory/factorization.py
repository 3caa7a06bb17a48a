"""Matrix factorisation ``L(U, V) = ||U V - M||^2 / 2``: gradient descent in the whitened gauge is scaled gradient
descent, whose rate does not depend on the condition number of M.

GL acts by ``U g^-1, g V``. In the gauge with ``(g V)(g V)^T = I`` a gradient step of U, taken back to the old gauge, is

    [U g^-1 - eta E (g V)^T] g = U - eta E V^T (V V^T)^-1,          E = U V - M, g^T g = (V V^T)^-1,

a step of scaled gradient descent; likewise for V in the gauge that whitens U. No gauge whitens both. Exact are
therefore: each factor's step in its own gauge, both *at once* from the same point, which is scaled gradient descent
(Tong, Ma, Chi 2021); and *in turn* (whiten V, step U, whiten U, step V), which is scaled gradient descent with the
factors one after the other. Both steps in the *one* gauge that whitens V are something else: the control.
"""

from collections.abc import Callable
from math import inf, isfinite
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.lab.figures import COLOURS, MARKERS
from experiments.theory.statement import Statement
from meta_teleport.evaluation.statistics import bootstrap
from meta_teleport.params import Params
from meta_teleport.symmetry.groups import GL
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.views import View
from meta_teleport.teleportation.gauges import whitened_consumers, whitened_producers

TITLE = "Matrix factorisation: the whitened gauge is scaled gradient descent"
SEEDS, STEPS, TUNING_STEPS = 20, 30_000, 500
COMPARED_STEPS = 40
ROWS, COLUMNS, RANK = 60, 50, 8
CONDITIONS = (1.0, 10.0, 1e2, 1e3, 1e4)
SMOKE: dict[str, Any] = {"seeds": 3, "steps": 60, "conditions": (1.0, 100.0)}
SCALED_STEP = 0.5
PLAIN_STEPS = (0.2, 0.4, 0.6, 0.8, 1.0)
DISTANCE = 0.1
FLOOR, LOWEST = 1e-13, 1e-16
Step = Callable[[Params, Tensor, float], Params]

SITE = Site("pair", GL(RANK), (View.along("v", (RANK, COLUMNS), 0),), (View.along("u", (ROWS, RANK), 1),))


def problems(seeds: int, condition: float, generator: torch.Generator) -> tuple[Tensor, Params]:
    """Matrices of singular values 1 to 1 / condition, and balanced factors of them, off by DISTANCE times the root of
    the least singular value."""

    def orthonormal(n: int) -> Tensor:
        return torch.linalg.qr(torch.randn(seeds, n, RANK, generator=generator, dtype=torch.float64))[0]

    def noise(*shape: int) -> Tensor:
        drawn = torch.randn(seeds, *shape, generator=generator, dtype=torch.float64)
        return DISTANCE * condition**-0.5 * drawn / torch.linalg.matrix_norm(drawn, 2, keepdim=True)

    values = condition ** -torch.linspace(0, 1, RANK, dtype=torch.float64)
    u, v = orthonormal(ROWS) * values.sqrt(), (orthonormal(COLUMNS) * values.sqrt()).mT
    return u @ v, {"u": u + noise(ROWS, RANK), "v": v + noise(RANK, COLUMNS)}


def error(params: Params, target: Tensor) -> Tensor:
    """``||U V - M||_F / ||M||_F``, shape ``(seeds,)``."""
    return (params["u"] @ params["v"] - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)


def gradient(params: Params, target: Tensor) -> Params:
    residual = params["u"] @ params["v"] - target
    return {"u": residual @ params["v"].mT, "v": params["u"].mT @ residual}


def descend(params: Params, target: Tensor, size: float, factors: tuple[str, ...] = ("u", "v")) -> Params:
    """One step of gradient descent on the named factors."""
    slope = gradient(params, target)
    return {name: params[name] - size * slope[name] if name in factors else params[name] for name in params}


def in_gauge(params: Params, target: Tensor, size: float, whiten: str, factors: tuple[str, ...]) -> Params:
    """Teleports to the gauge in which the factor ``whiten`` is orthonormal, steps there, and comes back."""
    g = (whitened_producers if whiten == "v" else whitened_consumers)(SITE, params)
    return SITE.act(descend(SITE.act(params, g), target, size, factors), torch.linalg.inv(g))


def whitened_alternating(params: Params, target: Tensor, size: float) -> Params:
    return in_gauge(in_gauge(params, target, size, "v", ("u",)), target, size, "u", ("v",))


def whitened_simultaneous(params: Params, target: Tensor, size: float) -> Params:
    u = in_gauge(params, target, size, "v", ("u",))["u"]
    return {"u": u, "v": in_gauge(params, target, size, "u", ("v",))["v"]}


def whitened_one_gauge(params: Params, target: Tensor, size: float) -> Params:
    return in_gauge(params, target, size, "v", ("u", "v"))


def scale(params: Params, target: Tensor, size: float, factors: tuple[str, ...]) -> Params:
    """One step of scaled gradient descent on the named factors."""
    u, v, slope = params["u"], params["v"], gradient(params, target)
    steps = {
        "u": torch.linalg.solve(v @ v.mT, slope["u"], left=False),
        "v": torch.linalg.solve(u.mT @ u, slope["v"]),
    }
    return {name: params[name] - size * steps[name] if name in factors else params[name] for name in params}


def scaled_alternating(params: Params, target: Tensor, size: float) -> Params:
    return scale(scale(params, target, size, ("u",)), target, size, ("v",))


def scaled_simultaneous(params: Params, target: Tensor, size: float) -> Params:
    return scale(params, target, size, ("u", "v"))


GAUGES: dict[str, tuple[Step, Step]] = {
    "own gauges at once": (whitened_simultaneous, scaled_simultaneous),
    "gauges in turn": (whitened_alternating, scaled_alternating),
    "one gauge for both": (whitened_one_gauge, scaled_simultaneous),
}
METHODS: dict[str, Step] = {
    "GD": descend,
    "scaled GD": scaled_simultaneous,
    **{n: pair[0] for n, pair in GAUGES.items()},
}


def difference(first: Step, second: Step, params: Params, target: Tensor) -> float:
    """The largest relative difference between the factors of two separate runs, over all steps, factors and seeds."""
    a = b = params
    largest = 0.0
    for _ in range(COMPARED_STEPS):
        a, b = first(a, target, SCALED_STEP), second(b, target, SCALED_STEP)
        largest = max(largest, *(float(((a[n] - b[n]).norm(dim=(1, 2)) / b[n].norm(dim=(1, 2))).max()) for n in a))
    return largest


def errors(step: Step, params: Params, target: Tensor, size: float, steps: int) -> Tensor:
    """Relative errors ``(steps + 1, seeds)``."""
    reached = [error(params, target)]
    for _ in range(steps):
        params = step(params, target, size)
        reached.append(error(params, target))
    return torch.stack(reached)


def rates(path: Tensor) -> Tensor:
    """The slope of log10 error per step ``(seeds,)``, by least squares over the later half of the steps whose error is
    above FLOOR."""
    slopes = []
    for column in path.unbind(1):
        last = int((column > FLOOR).sum())
        y = column[last // 2 : last].log10()
        x = torch.arange(len(y), dtype=y.dtype)
        slopes.append(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return torch.stack(slopes)


def steps_for(name: str, condition: float) -> int:
    """Enough to see the rate; the control, whose rate falls with the square of the condition number, gets 2000."""
    return {"GD": max(100, round(3 * condition)), "one gauge for both": 2000}.get(name, 100)


def tune(params: Params, target: Tensor, steps: int) -> float:
    """The step size of gradient descent with the lowest mean log error over all steps."""
    scores = {size: float(errors(descend, params, target, size, steps).log10().mean()) for size in PLAIN_STEPS}
    return min(scores, key=lambda size: scores[size] if isfinite(scores[size]) else inf)


def measure(condition: float, seeds: int, steps: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    target, params = problems(seeds, condition, generator)
    rows, curves = [], {}
    for name, step in METHODS.items():
        count = min(steps, steps_for(name, condition))
        size = tune(params, target, min(count, TUNING_STEPS)) if name == "GD" else SCALED_STEP
        curves[name] = errors(step, params, target, size, count)
        rate = rates(curves[name])
        row: dict[str, Any] = {"condition": condition, "method": name, "steps": count, "step size": size}
        row |= {"log10 error per step": float(rate.mean()), "interval": list(bootstrap(rate, generator))}
        row["last error"] = float(curves[name][-1].median())
        row["difference from scaled GD"] = difference(*GAUGES[name], params, target) if name in GAUGES else None
        rows.append(row)
    return rows, curves


def run(smoke: bool) -> Statement:
    sizes = (SMOKE["seeds"], SMOKE["steps"]) if smoke else (SEEDS, STEPS)
    measured = {c: measure(c, *sizes) for c in (SMOKE["conditions"] if smoke else CONDITIONS)}
    curves = {f"{c:.0e}": curves for c, (_, curves) in measured.items()}
    return Statement(TITLE, [row for rows, _ in measured.values() for row in rows], curves)


def draw(statement: Statement, figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    for colour, (condition, curves) in zip(COLOURS, statement.curves.items(), strict=False):
        for name, line in (("GD", ":"), ("own gauges at once", "-")):
            path = curves[name].clamp(min=LOWEST)
            label = condition if line == "-" else None
            left.plot(path.median(1).values, line, color=colour, label=label)
    left.set(xscale="symlog", yscale="log", xlabel="step", ylabel="relative error, median")
    left.set_title("dotted: GD; lines: each factor in its whitened gauge", fontsize=9)
    left.legend(title="condition number", fontsize=7)
    for size, colour, marker, name in zip((9, 9, 6, 4), COLOURS, MARKERS, METHODS, strict=False):
        rows = [row for row in statement.rows if row["method"] == name]
        conditions = [row["condition"] for row in rows]
        speeds = [-row["log10 error per step"] for row in rows]
        right.plot(conditions, speeds, marker=marker, color=colour, label=name, markersize=size, linewidth=1)
    right.set(xscale="log", yscale="log", xlabel="condition number", ylabel="decades of error per step")
    right.legend(fontsize=7)
