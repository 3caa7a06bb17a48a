import pytest
import torch
from evaluation_cases import generator

from meta_teleport.evaluation.statistics import FLOOR, bootstrap, compare, curves, speed_up


def losses(seed, shift=0.0, tasks=200):
    return 10 ** (torch.randn(1, tasks, generator=generator(seed), dtype=torch.float64) + shift)


def test_the_interval_covers_a_planted_difference_and_not_zero():
    a = losses(0)
    b = a * 10 ** (0.5 + 0.3 * torch.randn(1, 200, generator=generator(1), dtype=torch.float64))
    result = compare("a", "b", {"a": a, "b": b}, 0, generator(2))
    low, high = result.ci95
    assert low < -0.5 < high < 0 and low < result.log10_ratio < high
    assert result.win_rate == float((a < b).double().mean())


def test_the_interval_of_equal_methods_covers_zero():
    result = compare("a", "b", {"a": losses(0), "b": losses(1)}, 0, generator())
    assert result.ci95[0] < 0 < result.ci95[1]


def test_the_interval_has_the_width_of_the_normal_one():
    values = torch.randn(400, generator=generator(), dtype=torch.float64)
    low, high = bootstrap(values, generator(1))
    assert (high - low) == pytest.approx(2 * 1.96 * float(values.std()) / 20, rel=0.1)


def test_ties_count_half_and_exact_zeros_are_finite():
    a = torch.tensor([[0.0, 1.0, 1.0, 3.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 1.0, 2.0, 2.0]], dtype=torch.float64)
    result = compare("a", "b", {"a": a, "b": b}, 0, generator())
    assert result.win_rate == 0.625
    expected = torch.tensor([FLOOR, 1, 0.5, 1.5], dtype=torch.float64).log10().mean()
    assert result.log10_ratio == pytest.approx(float(expected))


def test_swapping_the_methods_swaps_the_sign():
    both = {"a": losses(0), "b": losses(1, 0.2)}
    one, other = compare("a", "b", both, 0, generator()), compare("b", "a", both, 0, generator())
    assert one.log10_ratio == pytest.approx(-other.log10_ratio)
    assert one.win_rate == pytest.approx(1 - other.win_rate)


def test_curves_are_quantiles_over_tasks():
    values = curves(torch.arange(11, dtype=torch.float64).expand(2, 11))
    assert values == {"median": [5.0] * 2, "mean": [5.0] * 2, "q10": [1.0] * 2, "q90": [9.0] * 2}


def test_speed_up_counts_the_steps_of_the_reference():
    reference = torch.linspace(100, 0, 101, dtype=torch.float64).unsqueeze(1)
    fast = torch.linspace(100, 0, 11, dtype=torch.float64).unsqueeze(1)
    assert speed_up(fast, reference, 5)["speedup_over_adam"] == 10.0
    assert speed_up(reference, reference, 5)["speedup_over_adam"] == 1.0
    never = speed_up(fast - 1000, reference, 5)
    assert never == {"speedup_over_adam": None, "speedup_over_adam_at_least": 20.0}
