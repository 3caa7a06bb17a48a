"""Distances to curves by formula against brute force, the quadrature against closed forms, and the experiment."""

import json
import subprocess
import sys
from math import pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from experiments.displacement import run as displacement
from experiments.displacement.curve_distances import (
    CIRCLES,
    FAMILIES,
    HALF_LINE,
    LINE,
    PARABOLAS,
    Family,
    circle_distance,
    circle_mean,
    large,
    mean_distance,
    parabola_distance,
    polyline_mean,
    small,
)

DRAWN = np.random.default_rng(0)
POINTS = [(*DRAWN.normal(size=2) * 2, 10 ** DRAWN.uniform(-3, 2)) for _ in range(40)]
POINTS += [(0.0, y, kappa) for y in (-1.0, 0.0, 0.3, 2.0) for kappa in (1e-3, 0.5, 1.0, 40.0)]
POINTS += [(1.0, 1.0, 1.0), (1e-9, 2.0, 1.0), (3.0, 0.5, 2.0)]


def searched(x: float, y: float, kappa: float) -> float:
    """The distance to the parabola by a grid and a search from its best point."""

    def distance(t: float) -> float:
        return float(np.hypot(t - x, kappa / 2 * t * t - y))

    t = np.sinh(np.linspace(-8, 8, 200001))
    at = int(np.hypot(t - x, kappa / 2 * t * t - y).argmin())
    found = minimize_scalar(distance, bounds=(t[at - 1], t[at + 1]), method="bounded", options={"xatol": 1e-13})
    return min(float(found.fun), distance(t[at]))


@pytest.mark.parametrize(("x", "y", "kappa"), POINTS)
def test_the_distance_to_a_parabola_is_the_least_one(x: float, y: float, kappa: float) -> None:
    assert parabola_distance(x, y, kappa) == pytest.approx(searched(x, y, kappa), rel=1e-10, abs=1e-11)
    assert parabola_distance(-x, y, kappa) == parabola_distance(x, y, kappa)


@pytest.mark.parametrize(("x", "y", "kappa"), POINTS)
def test_the_distance_to_a_circle(x: float, y: float, kappa: float) -> None:
    expected = abs(np.hypot(x, y - 1 / kappa) - 1 / kappa)
    assert circle_distance(x, y, kappa) == pytest.approx(expected, rel=1e-9, abs=1e-11)
    assert circle_distance(x, y, 0.0) == abs(y) == parabola_distance(x, y, 0.0)


@pytest.mark.parametrize("e", [1e-4, 0.1, 1.0, 1.6, 1.999, 2.0, 2.001, 5.0, 1e3])
def test_the_quadrature_for_circles_is_the_closed_form(e: float) -> None:
    mean = mean_distance(CIRCLES, 1.0, e)
    assert mean.value == pytest.approx(circle_mean(e), abs=1e-11)
    assert 0 <= mean.error < 1e-11


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_means_are_those_of_many_points(family: Family) -> None:
    angles = (np.arange(20000) + 0.5) * 2 * pi / 20000
    for r, kappa in ((0.1, 7.0), (1.0, 1.5), (2.0, 30.0)):
        points = zip(r * np.cos(angles), r * np.sin(angles), strict=True)
        expected = np.mean([family.distance(x, y, kappa) for x, y in points]) / r
        assert mean_distance(family, r, kappa).value == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_means_depend_on_the_product_alone(family: Family) -> None:
    for e in (0.0, 0.3, 3.0, 50.0):
        values = [mean_distance(family, r, e / r).value for r in (0.005, 0.1, 2.0)]
        assert values == pytest.approx([values[0]] * 3, abs=1e-11)
    assert mean_distance(family, 1.0, 0.0).value == pytest.approx(LINE, abs=1e-13)


def test_small_curvatures_lower_the_mean_by_the_same_for_both() -> None:
    for family in FAMILIES.values():
        errors = [mean_distance(family, 1.0, e).value - small(e) for e in (0.02, 0.04, 0.08)]
        assert max(map(abs, errors)) < 0.02 * 0.08**4
        assert errors[2] / errors[1] == pytest.approx(16, rel=0.1)
    wrong = [mean_distance(CIRCLES, 1.0, e).value - (LINE - e**2 / (3 * pi)) for e in (0.02, 0.04)]
    assert wrong[1] / wrong[0] == pytest.approx(4, rel=0.1)


def test_large_curvatures() -> None:
    for e in (1e2, 1e3):
        assert mean_distance(CIRCLES, 1.0, e).value == pytest.approx(large(e, "circle"), abs=0.3 / e**2)
        assert mean_distance(PARABOLAS, 1.0, e).value == pytest.approx(large(e, "parabola"), abs=1 / e**0.75 / 20)
    coefficient = (HALF_LINE - mean_distance(PARABOLAS, 1.0, 1e7).value) * sqrt(1e7)
    assert coefficient == pytest.approx((HALF_LINE - large(1.0, "parabola")), rel=5e-3)


def test_landmarks_are_a_minimum_and_a_return() -> None:
    for name, family in FAMILIES.items():
        marks = displacement.landmarks(name)
        around = [mean_distance(family, 1.0, marks.lowest + d).value for d in (-0.1, 0.1)]
        assert min(around) > marks.least == pytest.approx(mean_distance(family, 1.0, marks.lowest).value)
        assert mean_distance(family, 1.0, marks.back).value == pytest.approx(LINE, abs=1e-10)
        grid = [mean_distance(family, 1.0, e).value for e in np.geomspace(1e-2, 1e4, 200)]
        turns = np.sign(np.diff(grid))
        assert (np.diff(turns) != 0).sum() == 1 and turns[0] == -1 and turns[-1] == 1


def test_a_fine_polyline_is_the_parabola_and_a_coarse_one_is_not() -> None:
    exact = mean_distance(PARABOLAS, 0.1, 40.0).value
    assert polyline_mean(0.1, 40.0, spacing=0.001) == pytest.approx(exact, abs=2e-4)
    assert abs(polyline_mean(0.1, 40.0) - exact) > 0.05


def test_the_direction_in_a_range() -> None:
    marks = displacement.Landmarks(lowest=1.6, least=0.5, back=2.5)
    found = [displacement.direction(marks, 0.1, kappa) for kappa in (10, 20, 30)]
    assert found == ["falls", "falls, then rises", "falls, then rises above that of a line"]


def test_the_experiment(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.displacement.run", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    results: dict[str, Any] = json.loads((tmp_path / "displacement.json").read_text())
    assert results["smoke"] and "torch" in results["provenance"]["versions"]
    assert len(results["curves"]) == 10 and max(row["error"] for row in results["curves"]) < 1e-10
    for row in results["curves"]:
        expected = [mean_distance(FAMILIES[row["family"]], row["r"], kappa).value for kappa in row["kappa"]]
        assert row["m"] == pytest.approx(expected) and len(expected) > 2
    assert results["landmarks"]["parabola"]["lowest"] == pytest.approx(1.828, abs=1e-3)
    assert results["landmarks"]["circle"]["back"] == pytest.approx(2.4705, abs=1e-3)
    assert done.stdout == (tmp_path / "displacement.md").read_text() + "\n"
    assert "| circle | 0.1 | " in done.stdout
    for suffix in (".png", ".pdf"):
        assert (tmp_path / "displacement").with_suffix(suffix).stat().st_size > 5_000
