"""Models that have changed since their symmetry was found: without a loss it is their outputs that tell."""

import pickle
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import laws
import network_cases
import pytest
import torch
from network_cases import RELU, parameters
from rule_cases import trained
from torch import Tensor, nn
from torch.optim import SGD

import meta_teleport as mt
from meta_teleport.safeguards.witness import EVERY, Witness


def optimizer_of(model: nn.Module, objective: str = "random", **options: Any) -> mt.TeleportedOptimizer:
    generator = {"generator": torch.Generator().manual_seed(0)} if objective == "random" else {}
    base = SGD(model.parameters(), 0.01)
    return mt.TeleportedOptimizer(base, model, RELU.symmetry, objective, imbalance=1e9, **generator, **options)


def add_hook(model: Any) -> None:
    model[1].register_forward_hook(lambda module, inputs, output: output + 0.1)


def add_pre_hook(model: Any) -> None:
    model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0].clamp(max=0.5),))


def add_always_called_hook(model: Any) -> None:
    model[1].register_forward_hook(lambda module, inputs, output: output.tanh(), always_call=True)


def swap_module(model: Any) -> None:
    model[1] = nn.Sigmoid()


def swap_forward(model: Any) -> None:
    model[1].forward = torch.tanh


CHANGES: dict[str, Callable[[Any], None]] = {
    "hook": add_hook,
    "pre-hook": add_pre_hook,
    "hook always": add_always_called_hook,
    "module": swap_module,
    "forward": swap_forward,
}


@pytest.mark.parametrize("objective", ["balanced", "random"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_breaks_the_symmetry_is_noticed_and_nothing_moves(change: str, objective: str) -> None:
    model = RELU.build()
    inputs, _ = RELU.batch()
    optimizer = optimizer_of(model, objective)
    CHANGES[change](model)
    outputs, before = model(inputs), parameters(model)
    with pytest.warns(UserWarning, match="a teleport was not carried out: the model's outputs moved by"):
        record = optimizer.teleport()
    assert not record.accepted and "has changed since the symmetry was found" in record.reason
    assert "\n" not in record.reason
    laws.same_bits(parameters(model), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not optimizer.teleport().accepted  # and no second warning
    assert torch.equal(model(inputs), outputs)


@pytest.mark.parametrize("change", ["hook", "pre-hook", "module"])
def test_a_change_that_comes_later_is_noticed_at_the_next_teleport(change: str) -> None:
    model = RELU.build()
    optimizer = optimizer_of(model)
    model(RELU.batch()[0])
    assert optimizer.teleport().accepted
    CHANGES[change](model)
    with pytest.warns(UserWarning, match="a teleport was not carried out"):
        assert not optimizer.teleport().accepted


def test_an_attribute_that_changes_is_noticed_within_so_many_teleports() -> None:
    model = RELU.build()
    model[1] = nn.LeakyReLU(0.5)
    optimizer = optimizer_of(model)
    model(RELU.batch()[0])
    for _ in range(3):
        assert optimizer.teleport().accepted
    model[1].forward = torch.tanh
    with pytest.warns(UserWarning, match="a teleport was not carried out"):
        accepted = [optimizer.teleport().accepted for _ in range(EVERY)]
    assert accepted.count(False) == EVERY - accepted.index(False) >= 1


def test_the_model_is_run_twice_per_so_many_teleports() -> None:
    model = RELU.build()
    calls = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal calls
        calls += 1

    model[2].register_forward_hook(count)
    optimizer = optimizer_of(model)
    model(RELU.batch()[0])
    calls = 0
    for _ in range(3 * EVERY):
        assert optimizer.teleport().accepted
    assert calls == 2 * 3
    looked_at = optimizer_of(model, loss=network_cases.loss, batches=RELU.batch)
    assert looked_at._search._witness is None  # the loss tells


class Noisy(nn.Module):
    """Batch norm, dropout, and a layer that writes into its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 5), nn.BatchNorm1d(4), nn.Linear(5, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(1.5).add_(torch.rand(x.shape, dtype=x.dtype))
        return self.norm(self.second(self.dropout(torch.relu(self.first(x)))))


def test_statistics_random_numbers_and_inputs_stay_what_they_are() -> None:
    model = Noisy().double()
    sites = {"hidden": ("scaling", ["first.weight", "first.bias"], ["second.weight"])}
    symmetry = mt.Symmetry.manual(model, sites)
    optimizer = mt.TeleportedOptimizer(SGD(model.parameters(), 0.1), model, symmetry, "balanced")
    x = torch.randn(8, 6, dtype=torch.float64)
    model(x)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    state, inputs = torch.get_rng_state(), x.clone()
    assert optimizer.teleport().accepted
    assert optimizer._search._witness._since == 0 and optimizer._search._witness._form  # it has looked
    laws.same_bits(dict(model.named_buffers()), buffers)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, inputs)


class Whimsical(nn.Module):
    """Never says the same twice, by a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.generator = RELU.build(), torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + torch.randn(4, generator=self.generator, dtype=x.dtype)


def test_a_model_that_never_says_the_same_twice_teleports() -> None:
    model = Whimsical()
    sites = {"hidden": ("scaling", ["layers.0.weight", "layers.0.bias"], ["layers.2.weight"])}
    optimizer = mt.TeleportedOptimizer(
        SGD(model.parameters(), 0.1), model, mt.Symmetry.manual(model, sites), "balanced"
    )
    model(RELU.batch()[0])
    assert optimizer.teleport().accepted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["balanced", "random"])
def test_rounding_is_no_change(name: str, dtype: torch.dtype) -> None:
    """Wide and deep, and every teleport looked at."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [module for _ in range(6) for module in (nn.Linear(32, 32), nn.Identity())]
        model = nn.Sequential(*layers, nn.Linear(32, 32)).to(dtype)
        x = torch.randn(16, 32, dtype=dtype)
    symmetry = mt.find_symmetries(model, x)
    options = {"generator": torch.Generator().manual_seed(0), "size": 3.0} if name == "random" else {}
    optimizer = mt.TeleportedOptimizer(SGD(model.parameters(), 0.1), model, symmetry, name, imbalance=1e9, **options)
    model(x)
    for _ in range(5):
        optimizer._search._witness._form = ()
        record = optimizer.teleport()
        assert record.accepted, record.reason


def test_copies_and_pickles_look_at_inputs_of_their_own() -> None:
    model = RELU.build()
    optimizer = optimizer_of(model, "balanced")
    model(RELU.batch()[0])
    for other, copied in (deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        assert len(other._forward_pre_hooks) == 2  # one that does nothing, and that of the copy
        assert copied._search._witness._seen is None
        add_hook(other)
        other(RELU.batch()[0])
        with pytest.warns(UserWarning, match="a teleport was not carried out"):
            assert not copied.teleport().accepted
    assert optimizer.teleport().accepted


def test_the_hook_goes_with_its_owner_and_tracers_and_maps_leave_nothing() -> None:
    model = RELU.build()
    witness = Witness(model, 1e-4)
    x = RELU.batch()[0]
    torch.func.vmap(model)(x[None])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.trace", FutureWarning)
        torch.jit.trace(model, (x,), check_trace=False)
    assert witness._seen is None
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    compiled(x)
    assert witness._seen is None
    model(x.requires_grad_())
    assert witness._seen is not None and not witness._seen[0][0].requires_grad
    del witness, compiled
    torch.compiler.reset()
    assert not model._forward_pre_hooks


def test_an_input_that_cannot_be_run_again_is_not_kept() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2)})
    model.forward = lambda x, cache=None: model["a"](x)
    witness = Witness(model, 1e-4)
    model(torch.ones(1, 2), cache=object())
    assert witness._seen is None
    model(torch.ones(1, 2), cache=[None, 3, {"flag": True}])
    assert witness._seen is not None


def test_learned_teleports_without_a_closure_are_looked_at_too() -> None:
    def rejected(change: Callable[[Any], None], **options: Any) -> list[int]:
        model = RELU.build()
        optimizer = trained("gd", lr=0.01, scale=0.6).optimizer(model, symmetry=RELU.symmetry, **options)
        counts = []
        for seed in range(4):
            if seed == 2:
                change(model)
            optimizer.step(network_cases.loss(model, RELU.batch(seed)))
            counts.append(optimizer.rejected)
        return counts

    with pytest.warns(UserWarning, match="a teleport was not carried out"):
        assert rejected(add_hook) == [0, 0, 1, 2]
    assert rejected(lambda model: None) == [0, 0, 0, 0] == rejected(add_hook, checked=False)
