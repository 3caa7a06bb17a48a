"""An optimizer that is another one."""

import copy
import inspect
import pickle
from collections import defaultdict

import laws
import pytest
import torch
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

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


def test_what_only_the_base_has_is_had_here() -> None:
    model = nn.Linear(3, 2)
    optimizer = Delegate(AdamWScheduleFree(model.parameters(), lr=0.1))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.train()
    for _ in range(2):
        optimizer.step()
    trained = model.weight.detach().clone()
    optimizer.eval()
    laws.must_fail(laws.same_bits, model.weight.detach(), trained)
    with pytest.raises(Exception, match="Optimizer was not in train mode"):
        optimizer.step()
    optimizer.train()
    optimizer.step()
    assert not hasattr(Delegate(SGD(model.parameters(), 0.1)), "train")
    with pytest.raises(AttributeError, match="'Delegate' object has no attribute '_private'"):
        optimizer._private  # noqa: B018


def test_a_gradient_scaler_sees_no_private_promise_of_the_base() -> None:
    model = nn.Linear(3, 2)
    plain, other = copy.deepcopy(model), copy.deepcopy(model)
    scaled, bare = Delegate(AdamW(plain.parameters(), 0.1, fused=True)), AdamW(other.parameters(), 0.1, fused=True)
    for m, optimizer in ((plain, scaled), (other, bare)):
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(m(torch.ones(1, 3)).square().sum()).backward()
        scaler.step(optimizer)
    laws.same_bits(plain.weight.detach(), other.weight.detach())


def test_copies_have_what_their_base_has() -> None:
    optimizer = Delegate(AdamWScheduleFree(nn.Linear(3, 2).parameters(), lr=0.1))
    for twin in (copy.deepcopy(optimizer), copy.copy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        twin.eval()
        assert not twin.param_groups[0]["train_mode"]


def test_methods_have_the_signatures_of_torch() -> None:
    for name in ("zero_grad", "step", "load_state_dict"):
        mine, torchs = (list(inspect.signature(getattr(cls, name)).parameters) for cls in (Delegate, Optimizer))
        assert mine == torchs
