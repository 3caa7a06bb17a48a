"""The highest point of a one-parameter orbit."""

from math import pi

import laws
import tolerances
import torch
from torch import Tensor

from experiments.theory.orbits import ROUNDING, highest


def two_peaks(x: Tensor, angle: Tensor) -> Tensor:
    """The higher peak, of height 1.5, at ``x[0] + pi``; the lower one, of height 0.5, opposite."""
    return (2 * (angle - x[0])).cos() - 0.5 * (angle - x[0]).cos()


def points(generator: torch.Generator) -> Tensor:
    return 2 * pi * torch.rand(9, 1, generator=generator, dtype=torch.float64)


def test_the_higher_of_two_peaks_is_found_to_the_last_digits(generator: torch.Generator) -> None:
    x = points(generator)
    peak = highest(two_peaks, x, angles=16)
    # the rounding of the angle does not count at a maximum: two cosines, two products, a sum; steps may lose ROUNDING
    laws.assert_close(peak.value, torch.full((9,), 1.5, dtype=torch.float64), tolerances.summed(5) + ROUNDING)
    laws.assert_close((peak.angle - x[:, 0]).cos(), -torch.ones(9, dtype=torch.float64), tolerances.summed(2))
    assert float((peak.angle - x[:, 0]).sin().abs().max()) < 1e-12


def test_the_grid_alone_is_not_that_good(generator: torch.Generator) -> None:
    peak = highest(two_peaks, points(generator), angles=16, refinements=0)
    expected = torch.full((9,), 1.5, dtype=torch.float64)
    laws.must_fail(laws.assert_close, peak.value, expected, 1e-4)
    laws.assert_close(peak.value, expected, 0.1)


def test_steps_that_lower_the_value_are_undone(generator: torch.Generator) -> None:
    def kinked(x: Tensor, angle: Tensor) -> Tensor:
        return -((angle - x[0]) / 2).sin().abs().sqrt()  # its second derivative is positive

    x = points(generator)
    grid = highest(kinked, x, angles=32, refinements=0).value
    assert bool((highest(kinked, x, angles=32, refinements=4).value >= grid - 4 * ROUNDING * grid.abs()).all())


def test_a_flat_orbit_stays_finite(generator: torch.Generator) -> None:
    peak = highest(lambda x, angle: x[0] + 0 * angle.cos(), points(generator))
    assert bool(torch.isfinite(peak.angle).all())
    assert bool(torch.isfinite(peak.value).all())
