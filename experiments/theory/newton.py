"""Newton's direction and the steepest point of an orbit that fills the level set.

There ``|grad L|^2`` is stationary on the level set, so that its gradient ``2 H g`` is parallel to ``g = grad L``: g is
an eigenvector of the Hessian H, and the gradient step ``-g / lambda`` is Newton's step ``-H^-1 g``; a smaller one is
damped.

Elsewhere Newton's direction has a part along g and a part v tangent to the level set, along which the group can move.
The squared gradient norm changes along v at the rate

    d/ds |grad L|^2 = 2 g . H v = 2 [(g . H^-1 g) (g . H g) / |g|^2 - |g|^2],

which is not negative if H is positive definite (Cauchy and Schwarz) and zero only where g is an eigenvector. Checked
against moving by the group: the turn whose velocity is v.
"""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap

from experiments.lab.figures import COLOURS, MARKERS
from experiments.theory.landscapes import Landscape, ellipse, plane, quartic, tensor
from experiments.theory.statement import Statement

TITLE = "The Newton relation"
POINTS = 1000
SMOKE_POINTS = 20
SHIFT = 1e-6
SHOWN = 300
CONVEX = ("ellipse", "booth", "quartic")


def landscapes() -> tuple[Landscape, ...]:
    mix = tensor(1.0, 0.5, 0.2, 1.0).reshape(2, 2)
    return ellipse(), plane("booth"), quartic("quartic", tensor(1.0, 4.0), tensor(3.0, 0.5), mix), plane("rosenbrock")


def newton(landscape: Landscape, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient, the Hessian and Newton's direction at points ``(tasks, n)``."""
    g, hessian = vmap(landscape.gradient)(x), vmap(landscape.hessian)(x)
    return g, hessian, -torch.linalg.solve(hessian, g)


def alignment(landscape: Landscape, x: Tensor) -> Tensor:
    """The cosine between the negative gradient and Newton's direction, ``(tasks,)``."""
    g, _, direction = newton(landscape, x)
    return torch.cosine_similarity(-g, direction)


def residual(landscape: Landscape, x: Tensor) -> Tensor:
    """``|H g - (g . H g / |g|^2) g| / |H g|``: how far g is from an eigenvector."""
    g, hessian, _ = newton(landscape, x)
    image = (hessian @ g.unsqueeze(-1)).squeeze(-1)
    eigenvalue = (g * image).sum(1) / g.square().sum(1)
    return (image - eigenvalue.unsqueeze(1) * g).norm(dim=1) / image.norm(dim=1)


def symmetry_part(landscape: Landscape, x: Tensor) -> tuple[Tensor, Tensor]:
    """The part v of Newton's direction that is tangent to the level set, and the rate of |grad L|^2 along it divided by
    ``|g| |v|`` (so that it is in units of the Hessian)."""
    g, hessian, direction = newton(landscape, x)
    along = (direction * g).sum(1) / g.square().sum(1)
    v = direction - along.unsqueeze(1) * g
    rate = 2 * (g * (hessian @ v.unsqueeze(-1)).squeeze(-1)).sum(1)
    return v, rate / (g.norm(dim=1) * v.norm(dim=1))


def rate_by_group(landscape: Landscape, x: Tensor) -> Tensor:
    """The same rate from central differences along the orbit."""
    v, _ = symmetry_part(landscape, x)
    field = vmap(landscape.symmetry)(x)
    turn = (v * field).sum(1) / field.square().sum(1)
    shift = SHIFT * torch.sign(turn)
    f = vmap(lambda point, angle: landscape.squared_slope(landscape.act(point, angle)))
    change = (f(x, shift) - f(x, -shift)) / (2 * SHIFT * field.norm(dim=1))
    return change / vmap(landscape.gradient)(x).norm(dim=1)


def measure(landscape: Landscape, points: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = landscape.turned(landscape.starts(points, generator), generator)
    steepest, _ = landscape.steepest(x)
    _, rate = symmetry_part(landscape, x)
    by_group = rate_by_group(landscape, x)
    cosines = {"steepest": alignment(landscape, steepest), "random": alignment(landscape, x)}
    row = {
        "landscape": landscape.name,
        "convex": landscape.name in CONVEX,
        "1 - cosine, steepest (max)": float((1 - cosines["steepest"]).max()),
        "cosine, random (median)": float(cosines["random"].median()),
        "not an eigenvector, steepest (max)": float(residual(landscape, steepest).max()),
        "random (median)": float(residual(landscape, x).median()),
        "gradient norm rises along the symmetry part": float((rate > 0).double().mean()),
        "least rate": float(rate.min()),
        "formula against group (median)": float(((by_group - rate).abs() / rate.abs()).median()),
    }
    return row, cosines | {"rate": rate}


def run(smoke: bool) -> Statement:
    measured = [measure(landscape, SMOKE_POINTS if smoke else POINTS) for landscape in landscapes()]
    return Statement(TITLE, [row for row, _ in measured], {row["landscape"]: values for row, values in measured})


def draw(statement: Statement, figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    for i, (name, values) in enumerate(statement.curves.items()):
        for key, line in (("steepest", "-"), ("random", ":")):
            ordered = values[key].sort().values
            label = f"{name}, random point" if key == "random" else "all, steepest point" if i == 0 else None
            left.plot(torch.linspace(0, 1, len(ordered)), ordered, line, color=COLOURS[i], label=label)
        rates = values["rate"][:SHOWN].sort().values
        right.plot(
            torch.linspace(0, 1, len(rates)), rates, marker=MARKERS[i], markevery=30, color=COLOURS[i], label=name
        )
    left.set(xlabel="fraction of points", ylabel="cosine of gradient and Newton steps")
    right.set(xlabel="fraction of points", ylabel="rate of |grad L|^2 along v / (|g| |v|)", yscale="symlog")
    right.axhline(0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.legend(fontsize=7)
