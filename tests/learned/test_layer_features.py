"""What a rule reads of every parameter, in its units."""

from math import e, log

import laws
import pytest
import torch
from observations import observe
from torch import Tensor

from meta_teleport.learned.layer_features import PRODUCED, read_layer_features
from meta_teleport.params import norms
from meta_teleport.rules.rule import Observation
from meta_teleport.rules.step_lengths import fan_in
from meta_teleport.tasks.regression import Regression

SHARE, COSINE, SIZE, SPREAD = range(PRODUCED)


def seen(action: str = "linear") -> Observation:
    """Two layers with four units between them."""
    family = Regression(width=4, action=action, activation="identity" if action == "linear" else "relu", points=9)
    tasks = family.sample(2, torch.Generator().manual_seed(1), dtype=torch.float64)
    return observe(tasks, tasks.params)


def test_the_share_of_a_parameter_in_the_gradient_counts_in_factors_of_e_cubed() -> None:
    share = e**-3
    sizes = torch.tensor([[share, (1 - share**2) ** 0.5], [share**2, (1 - share**4) ** 0.5]], dtype=torch.float64)
    laws.assert_close(read_layer_features(seen(), 50 * sizes, None)[..., SHARE], sizes.log() / 3, 1e-12)
    assert float(read_layer_features(seen(), sizes, None)[0, 0, SHARE]) == pytest.approx(-1)


@pytest.mark.parametrize("factor", [1.0, e**4.9, e**-4.9, e**5.1, e**-9, 0.0])
def test_sizes_count_from_that_of_an_initial_weight_and_stay_within_factors_of_e_to_the_fifth(factor: float) -> None:
    observation = seen()
    weights = {name: torch.full_like(p, factor / fan_in(p) ** 0.5) for name, p in observation.params.items()}
    found = read_layer_features(observation._replace(params=weights), norms(observation.gradients), None)[..., SIZE]
    expected = max(-5.0, min(log(factor), 5.0)) if factor else -5.0
    laws.assert_close(found, torch.full_like(found, expected), 1e-12, 1.0)


@pytest.mark.parametrize("action", ["linear", "scaling"])
def test_the_spread_of_k_activations_is_a_third_of_log_k_where_one_counts_and_zero_where_all_do(action: str) -> None:
    observation = seen(action)

    def spread(diagonal: Tensor) -> Tensor:
        gram = diagonal if action == "scaling" else diagonal.diag()
        shown = observation._replace(grams=(gram.expand(2, *gram.shape),))
        return read_layer_features(shown, norms(observation.gradients), None)[:, -1, SPREAD]

    one, all_alike = torch.tensor([0.0, 3.0, 0.0, 0.0]).double(), torch.full((4,), 0.7).double()
    laws.assert_close(spread(one), torch.full((2,), log(4) / 3, dtype=torch.float64), 1e-12)
    laws.assert_close(spread(all_alike), torch.zeros(2).double(), 1e-12, 1.0)
