"""Models that change while they train under teleports: the run goes on, and the record says why nothing moved; where
the optimizer would step beside the model it refuses to, before anything has moved."""

import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import laws
import network_cases
import pytest
import torch
from network_cases import RELU, parameters
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import meta_teleport as mt


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for seed in steps:
        model.zero_grad()
        network_cases.loss(model, RELU.batch(seed)).backward()
        optimizer.step()


def freeze(model: Any) -> None:
    model[0].requires_grad_(False)


def replace_weight(model: Any) -> None:
    model[2].weight = torch.nn.Parameter(model[2].weight.detach().clone())


def add_head(model: Any) -> None:
    model.add_module("head", torch.nn.Identity())
    model.head.register_parameter("scale", torch.nn.Parameter(torch.ones((), dtype=torch.float64)))


def compile_in_place(model: Any) -> None:
    model[0].compile()


def assign(model: Any) -> None:
    model.load_state_dict({name: p.clone() for name, p in model.state_dict().items()}, assign=True)


def swap_module(model: Any) -> None:
    model[2] = deepcopy(model[2])


def halve_precision(model: Any) -> None:
    model[2].to(torch.bfloat16)


def one_of_another_precision(model: Any) -> None:
    model[2].bias = torch.nn.Parameter(model[2].bias.detach().float())


def reshape(model: Any) -> None:
    model[2].weight.data = model[2].weight.data[:3]


def remove_bias(model: Any) -> None:
    model[0].bias = None


def normalize_weights(model: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(model[2])


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "frozen": (freeze, "every site has a frozen parameter"),
    "added": (add_head, "'head.scale' is new since the symmetry was found"),
    "compiled": (compile_in_place, "is compiled in place"),
}
BROKEN: dict[str, tuple[Callable[[Any], None], str]] = {
    "replaced": (replace_weight, r"'2\.weight' is (no longer the model's|another object)"),
    "assigned": (assign, r"'0\.weight' is (no longer the model's|another object)"),
    "swapped": (swap_module, r"'2\.weight' is (no longer the model's|another object)"),
    "weight norm": (normalize_weights, r"'2\.weight' is (no longer the model's|another object)"),
    "mixed": (one_of_another_precision, r"'2\.bias' is (no longer the model's|another object)"),
    "removed": (remove_bias, r"'0\.bias' is (no longer the model's|another object)"),
    "half": (halve_precision, r"'2\.weight' is bfloat16 \(4, 5\) on cpu, and was float64|the model is torch.bfloat16"),
    "reshaped": (reshape, r"'2\.weight' is float64 \(3, 5\) on cpu, and was (float64|of shape) \(4, 5\)"),
}


@pytest.mark.parametrize("objective", ["balanced", "gradient_norm", "learned"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_has_changed_has_a_record_and_training_goes_on(change: str, objective: str) -> None:
    model: Any = RELU.build()
    rule: Any = mt.load("factors") if objective == "learned" else objective
    base = SGD(model.parameters(), 0.01)
    batches = {"loss": network_cases.loss, "batches": RELU.batch}
    optimizer = mt.TeleportedOptimizer(base, model, RELU.symmetry, rule, 2, **batches)  # type: ignore[arg-type]
    train(model, optimizer, range(2))
    apply, reason = CHANGES[change]
    apply(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = parameters(model)
    optimizer.step()
    optimizer.step()
    after = parameters(model)
    assert any(not torch.equal(after[name], before[name]) for name in before)  # the base optimizer has stepped
    assert [record.step for record in optimizer.teleports] == [2, 4]
    last = optimizer.teleports[-1]
    assert not last.accepted and re.search(reason, last.reason) and "\n" not in last.reason
    assert last.sizes == {"0": 0.0}
    assert optimizer.teleport().reason == last.reason  # asked for, too


def begun(kind: str, model: nn.Module) -> Any:
    """An optimizer of a kind, after two steps."""
    optimizer: Any
    if kind == "learned":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "this rule has never met", UserWarning)
            optimizer = mt.load("factors").optimizer(model, symmetry=RELU.symmetry)
    else:
        base = SGD(model.parameters(), 0.01, momentum=0.9) if kind == "sgd" else Adam(model.parameters(), 0.01)
        optimizer = mt.TeleportedOptimizer(base, model, RELU.symmetry, "balanced", 3)
    for seed in range(2):
        optimizer.step(lambda seed=seed: closure(model, seed))
    return optimizer


def closure(model: nn.Module, seed: int) -> Tensor:
    model.zero_grad()
    loss = network_cases.loss(model, RELU.batch(seed))
    loss.backward()
    return loss


@pytest.mark.parametrize("kind", ["sgd", "adam", "learned"])
@pytest.mark.parametrize("change", BROKEN)
def test_what_would_be_trained_beside_the_model_is_refused_before_the_step(change: str, kind: str) -> None:
    model: Any = RELU.build()
    optimizer = begun(kind, model)
    old = dict(model.named_parameters())
    apply, reason = BROKEN[change]
    apply(model)
    tensors = {**old, **{f"new {name}": p for name, p in model.named_parameters()}}
    for p in tensors.values():
        p.grad = torch.ones_like(p)
    before = {name: p.detach().clone() for name, p in tensors.items()}
    state = deepcopy(optimizer.state_dict())
    for step in (lambda: optimizer.step(), lambda: optimizer.step(lambda: pytest.fail("evaluated"))):
        if kind == "learned":
            optimizer.report(loss=1.0)
        with pytest.raises(mt.UserError, match=reason) as caught:
            step()
        assert "\n" not in str(caught.value)
    laws.same_bits({name: p.detach() for name, p in tensors.items()}, before)
    after = optimizer.state_dict()
    for saved in (state, after):
        saved["param_groups"][0].pop("teleportation", None)  # which holds the seconds
    laws.same_bits(after, state)


def test_before_the_first_step_a_model_may_go_elsewhere_as_a_whole() -> None:
    model = RELU.build()
    optimizer = mt.TeleportedOptimizer(Adam(model.parameters(), 0.01), model, RELU.symmetry, "balanced", 2)
    model.float()
    for seed in range(2):
        model.zero_grad()
        x, y = RELU.batch(seed)
        network_cases.loss(model, (x.float(), y.float())).backward()
        optimizer.step()
    assert optimizer.teleports[0].accepted
    model.double()
    with pytest.raises(mt.UserError, match=r"'0\.weight' is float64 \(5, 6\) on cpu, and was float32"):
        optimizer.step()


def test_a_loaded_state_is_where_the_model_is() -> None:
    model, other = RELU.build(), RELU.build().float()
    saved = mt.TeleportedOptimizer(Adam(other.parameters(), 0.01), other, RELU.symmetry, "balanced", 9)
    optimizer = mt.TeleportedOptimizer(Adam(model.parameters(), 0.01), model, RELU.symmetry, "balanced", 9)
    train(model, optimizer, range(2))
    model.float()
    optimizer.load_state_dict(saved.state_dict())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


@pytest.mark.parametrize("by_closure", [False, True])
@pytest.mark.parametrize("state", ["transport", "reset", "keep"])
def test_sparse_gradients_of_what_a_site_moves_are_refused_before_the_step(state: str, by_closure: bool) -> None:
    model = nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Linear(4, 5))
    symmetry = mt.Symmetry.manual(model, {"pair": ("gl", [("0.weight", 1)], [("1.weight", 1)])})
    optimizer = mt.TeleportedOptimizer(SGD(model.parameters(), 0.1), model, symmetry, "balanced", 1, state=state)

    def evaluate() -> Tensor:
        model.zero_grad()
        loss = model(torch.tensor([1, 2])).square().sum()
        loss.backward()
        return loss

    before = parameters(model)
    evaluate()
    with pytest.raises(mt.UserError, match=r"the gradient of '0\.weight' is sparse and cannot move: use sparse=False"):
        optimizer.step(evaluate if by_closure else None)
    laws.same_bits(parameters(model), before)
    assert not optimizer.teleports


def test_sparse_gradients_of_what_no_site_moves_are_the_base_optimizers() -> None:
    model = nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    symmetry = mt.Symmetry.manual(model, {"hidden": ("scaling", ["1.weight", "1.bias"], ["3.weight"])})
    optimizer = mt.TeleportedOptimizer(SGD(model.parameters(), 0.1), model, symmetry, "balanced", 1)
    before = parameters(model)
    model(torch.tensor([1, 2])).square().sum().backward()
    optimizer.step()
    assert optimizer.teleports[0].accepted
    laws.must_fail(laws.same_bits, parameters(model)["0.weight"], before["0.weight"])


def test_a_learned_optimizer_refuses_sparse_gradients_before_anything_moves() -> None:
    model = nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Linear(4, 5))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this rule has never met", UserWarning)
        optimizer = mt.load("factors").optimizer(model, symmetry=mt.Symmetry(()))
    before = parameters(model)
    for _ in range(2):
        with pytest.raises(mt.UserError, match=r"the gradient of '0\.weight' is sparse"):
            optimizer.step(model(torch.tensor([1, 2])).square().sum())
    laws.same_bits(parameters(model), before)
    assert optimizer.step_count == 0


@pytest.mark.parametrize("objective", ["balanced", "learned"])
def test_teleports_go_on_where_a_layer_thaws_or_numbers_are_exchanged(objective: str) -> None:
    model: Any = RELU.build()
    rule: Any = mt.load("factors") if objective == "learned" else objective
    batches = {"loss": network_cases.loss, "batches": RELU.batch}
    optimizer = mt.TeleportedOptimizer(SGD(model.parameters(), 0.01), model, RELU.symmetry, rule, 1, **batches)  # type: ignore[arg-type]
    freeze(model)
    train(model, optimizer, range(1))
    model[0].requires_grad_(True)
    for p in model.parameters():
        p.data = p.data.clone()
    train(model, optimizer, range(1))
    assert [record.accepted for record in optimizer.teleports] == [False, True]
