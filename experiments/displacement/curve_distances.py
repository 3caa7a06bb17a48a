"""How far the points of a circle around the origin lie, on average, from a plane curve through the origin.

Two curves with tangent (1, 0) and curvature kappa at the origin: the parabola ``y = kappa x^2 / 2`` and the circle of
radius ``1 / kappa`` around ``(0, 1 / kappa)``. The mean distance over the circle of radius r, divided by r,

    m(r, kappa) = (1 / r) E dist(w, gamma),     |w| = r,

depends on ``e = kappa r`` alone, as both families are closed under scaling. For small e it is, for every curve that is
symmetric in x and has this curvature,

    m = 2 / pi - e^2 / (12 pi) + O(e^4):

with s the sine of the angle, dist / r = |s - e (1 - s^2) / 2 - e^2 s (1 - s^2) / 2 + ...|. The term in e averages to
zero, the one in e^2 gives -e^2 / (3 pi), and the kink, which moves from s = 0 to s = e / 2, where s has the density
1 / pi, gives + e^2 / (4 pi). For large e the circle shrinks to its point, m = 1 - 1 / e + O(1 / e^2), and
the parabola to a half-line, m = (1 + 2 / pi) / 2 - c / sqrt(e), c = Gamma(3/4) / (sqrt(2 pi) Gamma(5/4)).
"""

from collections.abc import Callable
from itertools import pairwise
from math import acos, asinh, cbrt, cos, cosh, gamma, hypot, pi, sin, sinh, sqrt
from typing import NamedTuple

import numpy as np
from scipy.integrate import quad
from scipy.special import ellipeinc

TOLERANCE = 1e-12
LINE = 2 / pi
HALF_LINE = (1 + 2 / pi) / 2

Distance = Callable[[float, float, float], float]


class Family(NamedTuple):
    """Curves by their curvature: ``distance(x, y, kappa)``, and ``crossing(r, kappa)``, the height at which the circle
    of radius r crosses the curve, if it does."""

    distance: Distance
    crossing: Callable[[float, float], float | None]


class Mean(NamedTuple):
    """A mean, and what the quadrature says about its error."""

    value: float
    error: float


def parabola_distance(x: float, y: float, kappa: float) -> float:
    """From ``(x, y)`` to ``y = kappa x^2 / 2``.

    The nearest point ``(t, kappa t^2 / 2)`` has ``t^3 + p t + q = 0`` with ``p = 2 (1 - kappa y) / kappa^2`` and ``q =
    -2 |x| / kappa^2``, for x >= 0 without loss; of up to three real roots it is the largest, which has the sign of x.
    """
    if kappa == 0:
        return abs(y)
    p, q = 2 * (1 - kappa * y) / kappa**2, -2 * abs(x) / kappa**2
    t = _largest_root(p, q)
    slope = 3 * t * t + p
    t = t - (t**3 + p * t + q) / slope if slope > 0 else t
    return hypot(t - abs(x), kappa * t * t / 2 - y)


def _largest_root(p: float, q: float) -> float:
    """Of ``t^3 + p t + q`` with q <= 0, by Cardano's formula in trigonometric and hyperbolic form."""
    if p == 0:
        return cbrt(-q)
    scale = sqrt(abs(p) / 3)
    z = -q / (2 * scale**3)
    if p > 0:
        return 2 * scale * sinh(asinh(z) / 3)
    return 2 * scale * (cos(acos(z) / 3) if z <= 1 else cosh(np.arccosh(z) / 3))


def parabola_crossing(r: float, kappa: float) -> float | None:
    return kappa * r * r / (1 + sqrt(1 + (kappa * r) ** 2))


def circle_distance(x: float, y: float, kappa: float) -> float:
    """From ``(x, y)`` to the circle of radius ``1 / kappa`` that touches the x-axis in the origin, in a form that does
    not cancel for small curvatures."""
    square = kappa * (x * x + y * y) - 2 * y
    return abs(square) / (1 + hypot(kappa * x, kappa * y - 1))


def circle_crossing(r: float, kappa: float) -> float | None:
    return kappa * r * r / 2 if kappa * r < 2 else None


PARABOLAS = Family(parabola_distance, parabola_crossing)
CIRCLES = Family(circle_distance, circle_crossing)
FAMILIES = {"parabola": PARABOLAS, "circle": CIRCLES}


def mean_distance(family: Family, r: float, kappa: float) -> Mean:
    """``m(r, kappa)`` by adaptive quadrature over the right half of the circle, cut where it crosses the curve."""

    def distance(angle: float) -> float:
        return family.distance(r * cos(angle), r * sin(angle), kappa) / r

    height = family.crossing(r, kappa)
    cuts = [-pi / 2, *([] if height is None else [float(np.arcsin(height / r))]), pi / 2]
    pieces = [quad(distance, a, b, epsabs=TOLERANCE, epsrel=TOLERANCE, limit=200) for a, b in pairwise(cuts)]
    return Mean(sum(value for value, _ in pieces) / pi, sum(error for _, error in pieces) / pi)


def circle_mean(e: float) -> float:
    """m for circles in closed form, by elliptic integrals of the second kind.

    With u the angle from the lowest point, halved, ``dist / r = |(1 + e) sqrt(1 - m sin^2 u) - 1| / e`` and ``m = 4 e
    / (1 + e)^2``; it is zero at ``cos 2u = -e / 2``.
    """
    modulus = 4 * e / (1 + e) ** 2

    def inside(a: float, b: float) -> float:
        return ((1 + e) * (ellipeinc(b, modulus) - ellipeinc(a, modulus)) - (b - a)) / e

    if e >= 2:
        return float(inside(0, pi / 2) * 2 / pi)
    zero = acos(-e / 2) / 2
    return float((inside(0, zero) - inside(zero, pi / 2)) * 2 / pi)


def small(e: float) -> float:
    """m to second order in e."""
    return LINE - e**2 / (12 * pi)


def large(e: float, family: str) -> float:
    """m to first order in the inverse of e, or of its square root."""
    if family == "circle":
        return 1 - 1 / e
    return HALF_LINE - gamma(3 / 4) / (sqrt(2 * pi) * gamma(5 / 4)) / sqrt(e)


def polyline_mean(r: float, kappa: float, spacing: float = 0.1, reach: float = 10.0, angles: int = 4000) -> float:
    """m for the polyline through the points of the parabola at x = ``-reach, -reach + spacing, ...``, which is the
    curve that the published script integrates over; by the midpoint rule. Nothing beyond x = 2 r is nearest."""
    angle = (np.arange(angles) + 0.5) * 2 * pi / angles
    w = r * np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, None]
    x = np.arange(-reach, reach, spacing)
    x = x[np.abs(x) <= 2 * r + spacing]
    vertices = np.stack([x, kappa / 2 * x**2], axis=1)
    edges = vertices[1:] - vertices[:-1]
    along = ((w - vertices[:-1]) * edges).sum(2) / (edges**2).sum(1)
    nearest = vertices[:-1] + np.clip(along, 0, 1)[..., None] * edges
    return float(np.linalg.norm(w - nearest, axis=2).min(1).mean() / r)
