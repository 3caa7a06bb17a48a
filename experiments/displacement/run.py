"""How far minima move when the loss shifts, against their curvature (Zhao et al. 2024, Figure 7), by quadrature.

    python -m experiments.displacement.run            seconds
    python -m experiments.displacement.run --smoke    few curvatures, no claim

A set of minima near one of them is a curve gamma in the plane; a shift of length r in a random direction puts the
minimum that was found at a distance dist(w, gamma) from the shifted curve, w on the circle of radius r. The script
takes the mean of it over r for parabolas and circles of curvature kappa, with the radii and curvatures of the published
script and without its geometry package, and once more over the polyline that the published script has in place of the
parabola. Writes ``displacement.json``, ``.md``, ``.png`` and ``.pdf`` to ``--out``.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import brentq, minimize_scalar

from experiments.displacement.curve_distances import (
    FAMILIES,
    HALF_LINE,
    LINE,
    large,
    mean_distance,
    polyline_mean,
    small,
)
from experiments.lab.script import finish, parser, run
from experiments.lab.tables import table

KAPPAS = {
    "parabola": np.arange(0, 80, 0.6),
    "circle": np.concatenate([np.arange(0.1, 1, 0.02), np.arange(1, 10.01, 0.1)]),
}
RADII = {"parabola": (2.0, 1.0, 0.5, 0.2, 0.1), "circle": (0.1, 0.05, 0.02, 0.01, 0.005)}
PRODUCTS = np.geomspace(1e-2, 1e3, 201)
SHOWN = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1000.0)
POLYLINE_EVERY = 3
THINNING = 20
COLOURS = {"parabola": "#0072B2", "circle": "#D55E00"}
LIMITS = {"parabola": HALF_LINE, "circle": 1.0}


class Landmarks(NamedTuple):
    """Products of curvature and radius: where m is least, what it is there, and where it is that of a line again."""

    lowest: float
    least: float
    back: float


def landmarks(name: str) -> Landmarks:
    def m(e: float) -> float:
        return mean_distance(FAMILIES[name], 1.0, e).value

    found = minimize_scalar(m, bounds=(0.5, 4.0), method="bounded", options={"xatol": 1e-10})
    return Landmarks(float(found.x), float(found.fun), float(brentq(lambda e: m(e) - LINE, found.x, 10.0)))


def sweep(name: str, kappas: np.ndarray) -> list[dict[str, Any]]:
    """One row per radius: m at all curvatures, and the largest error that the quadrature admits."""
    rows = []
    for r in RADII[name]:
        means = [mean_distance(FAMILIES[name], r, kappa) for kappa in kappas]
        values, error = [mean.value for mean in means], max(mean.error for mean in means)
        rows.append({"family": name, "r": r, "kappa": kappas.tolist(), "m": values, "error": error})
    return rows


def polylines(kappas: np.ndarray) -> list[dict[str, Any]]:
    """One row per radius: m over the polyline of the published script, beside the row of the parabola."""
    chosen = kappas[::POLYLINE_EVERY]
    return [
        {"r": r, "kappa": chosen.tolist(), "m": [polyline_mean(r, kappa) for kappa in chosen]}
        for r in RADII["parabola"]
    ]


def measure(smoke: bool) -> dict[str, Any]:
    thin = THINNING if smoke else 1
    curves = [row for name in FAMILIES for row in sweep(name, KAPPAS[name][::thin])]
    products = {
        name: [mean_distance(family, 1.0, e).value for e in PRODUCTS[::thin]] for name, family in FAMILIES.items()
    }
    table = {name: {f"{e:g}": mean_distance(family, 1.0, e).value for e in SHOWN} for name, family in FAMILIES.items()}
    return {
        "curves": curves,
        "polylines": polylines(KAPPAS["parabola"][::thin]),
        "products": {"kappa_r": PRODUCTS[::thin].tolist(), **products},
        "table": table,
        "landmarks": {name: landmarks(name)._asdict() for name in FAMILIES},
        "line": LINE,
    }


def markdown(results: dict[str, Any]) -> str:
    """Three tables: m against kappa r, what follows for every published radius, and the published polyline."""
    header = ["(1/r) E dist at kappa r =", "0", *(f"{e:g}" for e in SHOWN), "limit"]
    products = [
        [name, *(f"{value:.4f}" for value in (LINE, *row.values(), LIMITS[name]))]
        for name, row in results["table"].items()
    ]
    columns = ["curve", "r", "curvatures", "least at kappa", "there", "above a line's from kappa", "in the range"]
    radii = [_radius(row, Landmarks(**results["landmarks"][row["family"]])) for row in results["curves"]]
    spacing = ["r", "kappa", "parabola", "published polyline, spacing 0.1"]
    worst = [_worst(*pair) for pair in zip(results["curves"], results["polylines"], strict=False)]
    return "\n\n".join([table(header, products), table(columns, radii), table(spacing, worst)]) + "\n"


def _radius(row: dict[str, Any], marks: Landmarks) -> list[str]:
    low, high, r = min(row["kappa"]), max(row["kappa"]), row["r"]
    places = [f"{marks.lowest / r:.3g}", f"{marks.least:.4f}", f"{marks.back / r:.3g}"]
    return [row["family"], f"{r:g}", f"{low:g} to {high:g}", *places, direction(marks, r, high)]


def _worst(exact: dict[str, Any], drawn: dict[str, Any]) -> list[str]:
    """Where the polyline is farthest from the parabola."""
    known = dict(zip(exact["kappa"], exact["m"], strict=True))
    kappa, m = max(zip(drawn["kappa"], drawn["m"], strict=True), key=lambda pair: abs(pair[1] - known[pair[0]]))
    return [f"{exact['r']:g}", f"{kappa:.3g}", f"{known[kappa]:.4f}", f"{m:.4f}"]


def direction(marks: Landmarks, r: float, high: float) -> str:
    if high * r <= marks.lowest:
        return "falls"
    return "falls, then rises" if high * r <= marks.back else "falls, then rises above that of a line"


def plot(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(10.0, 3.8), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 3)
    for name, panel in zip(FAMILIES, axes, strict=False):
        _draw_family(panel, name, [row for row in results["curves"] if row["family"] == name])
    for row in results["polylines"]:
        label = "published polyline" if row is results["polylines"][0] else None
        axes[0].plot(row["kappa"], row["m"], ":", color="black", linewidth=0.9, label=label)
    _draw_products(axes[2], results["products"])
    for panel in axes:
        panel.axhline(LINE, color="grey", linewidth=0.7)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    axes[0].set_ylabel("(1 / r) E dist(w, curve)")
    return figure


def _draw_family(axes: Axes, name: str, rows: list[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        shade = 1 - number / (len(rows) + 1)
        axes.plot(row["kappa"], row["m"], color=COLOURS[name], alpha=shade, label=f"r = {row['r']:g}")
    axes.set(xlabel="curvature kappa", title=f"{name}s, as published")


def _draw_products(axes: Axes, rows: dict[str, list[float]]) -> None:
    e = np.array(rows["kappa_r"])
    for name in FAMILIES:
        axes.plot(e, rows[name], color=COLOURS[name], label=name)
        far = e[e > 20]
        axes.plot(far, [large(x, name) for x in far], "--", color=COLOURS[name], linewidth=0.9)
    near = e[e < 1.8]
    axes.plot(near, [small(x) for x in near], "--", color="black", linewidth=0.9, label="asymptotes")
    axes.set(xscale="log", xlabel="kappa r", title="all radii at once", ylim=(0.5, 1.02))


def main() -> None:
    args = parser("displacement", __doc__, "few curvatures, no claim").parse_args()
    results = measure(args.smoke)
    finish(args, results, markdown(results), {"displacement": plot(results)})


if __name__ == "__main__":
    run(main)
