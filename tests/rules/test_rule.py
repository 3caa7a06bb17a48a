"""What a rule declares: the modules that make its elements, and its horizon by the old name."""

import pytest
import torch
from torch import nn

from meta_teleport.learned.coordinatewise import Coordinatewise
from meta_teleport.rules.classical import GradientDescent


class Declaring(GradientDescent):
    """Has a module and a parameter that make elements, and others whose names look as if they did."""

    element_modules = ("turn", "angle")

    def __init__(self) -> None:
        super().__init__(0.1)
        self.turn, self.elementary = nn.Linear(1, 1), nn.Linear(1, 1, bias=False)
        self.angle, self.angles = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))


def test_elements_are_made_by_the_declared_modules_whatever_their_names() -> None:
    groups = Declaring().meta_groups()
    assert groups == {"update": ["angles", "elementary.weight"], "element": ["angle", "turn.weight", "turn.bias"]}


def test_a_rule_is_made_to_last_by_the_old_name_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="Rule.lasting is called for_horizon"):
        longer = Coordinatewise(hidden_size=2, horizon=10).lasting(30)
    assert longer.time_scale == 3.0
