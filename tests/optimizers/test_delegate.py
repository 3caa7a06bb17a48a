"""An optimizer that is another one."""

from collections import defaultdict

import laws
import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from meta_teleport.optimizers.delegate import Delegate


@pytest.fixture
def model() -> nn.Module:
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    return model


def test_it_has_the_groups_state_and_defaults_of_its_base(model: nn.Module) -> None:
    base = SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer = Delegate(base)
    optimizer.step()
    assert isinstance(optimizer, Optimizer) and len(optimizer.state) == 2
    optimizer.load_state_dict(base.state_dict())
    assert optimizer.state is base.state
    assert optimizer.param_groups is base.param_groups and optimizer.defaults is base.defaults
    laws.same_bits(optimizer.state_dict(), base.state_dict())
    assert "lr: 0.1" in repr(optimizer)


def test_what_is_set_is_set_in_the_base(model: nn.Module) -> None:
    base = SGD(model.parameters(), 0.1, momentum=0.9)
    optimizer = Delegate(base)
    optimizer.step()
    optimizer.state = defaultdict(dict)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5})
    assert not base.state and [group["lr"] for group in base.param_groups] == [0.1, 0.5]


def test_gradients_are_cleared_as_the_base_optimizer_does(model: nn.Module) -> None:
    optimizer = Delegate(SGD(model.parameters(), 0.1))
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not bool(p.grad.any()) for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_step_returns_what_the_closure_gave(model: nn.Module) -> None:
    optimizer = Delegate(SGD(model.parameters(), 0.1))
    before = model.weight.detach().clone()
    assert optimizer.step(lambda: 7.0) == 7.0
    laws.must_fail(laws.same_bits, model.weight.detach(), before)
    assert optimizer.step() is None
