"""What a rule reads of a task as a whole, in its units."""

from math import e, log, tanh

import laws
import torch

from meta_teleport.learned.task_features import no_memory, read_task_features
from meta_teleport.rules.rule import Observation


def test_each_number_is_one_where_it_has_come_by_one_unit() -> None:
    """Losses and gradients count in factors of e^10, the time in factors of e^5 of 1 + t, and to the horizon."""
    sizes = torch.tensor([[3.0, 4.0], [0.6, 0.8]], dtype=torch.float64)
    first = Observation({}, {}, torch.tensor([7.0, 0.2], dtype=torch.float64), torch.zeros(2))
    features, memory = read_task_features(first, sizes, no_memory(sizes), 10, 1.0)
    assert not features.any()
    fall = torch.tensor([e**-10, e], dtype=torch.float64)
    later = first._replace(loss=first.loss * fall, step=torch.ones(2))
    factors = torch.tensor([[e**10], [e**-10]], dtype=torch.float64)
    features, memory = read_task_features(later, sizes * factors, memory, 2, 1 / (e**5 - 1))
    expected = [[-1.0, tanh(-10), 1.0, 1.0, 1.0], [0.1, tanh(1), -1.0, 1.0, 1.0]]
    laws.assert_close(features, torch.tensor(expected, dtype=torch.float64), 1e-12)
    features, _ = read_task_features(later, sizes, memory, 4, 1.0)
    expected = [[-1.0, 0.0, 0.0, log(2) / 5, 0.25], [0.1, 0.0, 0.0, log(2) / 5, 0.25]]
    laws.assert_close(features, torch.tensor(expected, dtype=torch.float64), 1e-12)
