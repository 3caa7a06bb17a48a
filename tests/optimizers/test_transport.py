"""Optimizer state along the group action."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import laws
import network_cases
import pytest
import pytorch_optimizer
import schedulefree
import torch
from network_cases import HEADS, LINEAR, NETWORKS, RELU, Network, parameters, write
from torch import Tensor, nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
)

from meta_teleport.errors import UserError
from meta_teleport.models import MLP
from meta_teleport.optimizers.transport import (
    LAWS,
    Law,
    as_bounds,
    as_gradients,
    as_squared_weights,
    as_squares,
    as_weights,
    laws_of,
    move,
    moved_gradients,
    moved_state,
    reset_state,
)
from meta_teleport.params import Params, flatten
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.teleportation.conditions import require_linear

Make = Callable[[list[nn.Parameter], float], Optimizer]

BASES: dict[str, Make] = {
    "momentum": lambda p, lr: SGD(p, lr, momentum=0.9, dampening=0.1),
    "nesterov": lambda p, lr: SGD(p, lr, momentum=0.9, nesterov=True),
    "adagrad": lambda p, lr: Adagrad(p, lr),
    "rmsprop": lambda p, lr: RMSprop(p, lr, centered=True),
    "adam": lambda p, lr: Adam(p, lr),
    "amsgrad": lambda p, lr: Adam(p, lr, amsgrad=True),
    "adamw": lambda p, lr: AdamW(p, lr),
    "nadam": lambda p, lr: NAdam(p, lr),
    "radam": lambda p, lr: RAdam(p, lr),
    "adamax": lambda p, lr: Adamax(p, lr, eps=1e-30),
    "adadelta": lambda p, lr: Adadelta(p, lr),
    "asgd": lambda p, lr: ASGD(p, lr),
}
if hasattr(torch.optim, "Muon"):
    BASES["muon"] = lambda p, lr: torch.optim.Muon([q for q in p if q.ndim == 2], lr)


class OneFileMuon(Optimizer):
    """Muon as its author publishes it, in one file: what it keeps, and its steps but for the orthogonalization."""

    def __init__(self, params: list[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for p in self.param_groups[0]["params"]:
            buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            buffer.lerp_(p.grad, 0.05)
            p.add_(p.grad.lerp(buffer, 0.95), alpha=-self.param_groups[0]["lr"])


OneFileMuon.__name__ = "SingleDeviceMuon"


def in_training(optimizer: Any) -> Optimizer:
    optimizer.train()
    return optimizer


FOREIGN: dict[str, Make] = {
    "lion": lambda p, lr: pytorch_optimizer.Lion(p, lr or 1e-30),
    "schedule_free_adamw": lambda p, lr: in_training(schedulefree.AdamWScheduleFree(p, lr)),
    "schedule_free_sgd": lambda p, lr: in_training(schedulefree.SGDScheduleFree(p, lr)),
    "schedule_free_radam": lambda p, lr: in_training(schedulefree.RAdamScheduleFree(p, lr)),
    "another_schedule_free_adamw": lambda p, lr: in_training(pytorch_optimizer.ScheduleFreeAdamW(p, lr or 1e-30)),
    "one_file_muon": lambda p, lr: OneFileMuon(p, lr),
    "another_muon": lambda p, lr: pytorch_optimizer.Muon(
        [
            {"params": [q for q in p if q.ndim == 2], "use_muon": True},
            {"params": [q for q in p if q.ndim < 2], "use_muon": False},
        ],
        lr=lr or 1e-30,
        adamw_lr=lr or 1e-30,
    ),
}
"""Optimizers of other libraries."""

KEYS = {
    "lion": {"exp_avg"},
    "schedule_free_adamw": {"z", "exp_avg_sq"},
    "schedule_free_radam": {"z", "exp_avg_sq"},
    "another_schedule_free_adamw": {"z", "exp_avg_sq"},
    "schedule_free_sgd": {"z"},
    "one_file_muon": {"momentum_buffer"},
    "another_muon": {"momentum_buffer", "exp_avg", "exp_avg_sq"},
    "momentum": {"momentum_buffer"},
    "nesterov": {"momentum_buffer"},
    "muon": {"momentum_buffer"},
    "adagrad": {"sum"},
    "rmsprop": {"square_avg", "grad_avg"},
    "amsgrad": {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    "adamax": {"exp_avg", "exp_inf"},
    "adadelta": {"square_avg", "acc_delta"},
    "asgd": {"ax"},
}
"""What each remembers (the others: as Adam)."""


def names_of(model: nn.Module) -> dict[Tensor, str]:
    return {p: name for name, p in model.named_parameters()}


def gradient(network: Network, model: nn.Module, batch: network_cases.Batch) -> Params:
    model.zero_grad()
    network_cases.loss(model, batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained(network: Network, make: Make, params: Params, lr: float = 0.0) -> tuple[nn.Module, Optimizer]:
    """A model at ``params`` and an optimizer that has seen three batches; with lr 0, all of them there."""
    model = network.build()
    write(model, params)
    optimizer = make(list(model.parameters()), lr)
    for seed in range(3):
        gradient(network, model, network.batch(seed))
        optimizer.step()
    return model, optimizer


def entries(model: nn.Module, optimizer: Optimizer, key: str) -> Params:
    names = names_of(model)
    return {names[p]: state[key].clone() for p, state in optimizer.state.items() if key in state}


def apply(writes: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in writes:
        tensor.copy_(value)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_gradients_move_by_the_dual_element(network: Network, generator: torch.Generator) -> None:
    model, batch = network.build(), network.batch()
    elements = network.elements(generator)
    here = gradient(network, model, batch)
    moved = network.symmetry.act(parameters(model), elements)
    writes = moved_gradients(names_of(model), network.symmetry, elements)
    laws.same_bits(here, {name: p.grad for name, p in model.named_parameters()})
    with torch.no_grad():
        apply(writes)
    transported = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    write(model, moved)
    there = gradient(network, model, batch)
    laws.memory_moves(here, there, lambda _: transported)
    laws.must_fail(laws.memory_moves, here, there, lambda gradients: gradients)
    laws.must_fail(laws.memory_moves, here, there, lambda v: move(as_weights, network.symmetry, v, elements))


@pytest.mark.parametrize("base", [*BASES, *FOREIGN])
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_state_after_a_teleport_is_what_would_have_been_gathered_there(
    network: Network, base: str, generator: torch.Generator
) -> None:
    """Means of weights and gradients for every group, squares of gradients and bounds on them for diagonal ones."""
    start, elements = parameters(network.build()), network.elements(generator)
    make = {**BASES, **FOREIGN}[base]
    model, optimizer = trained(network, make, start)
    other, reference = trained(network, make, network.symmetry.act(start, elements))
    laws_here = laws_of(optimizer)
    kept = {key: found for key in laws_here if (found := entries(model, optimizer, key))}
    assert set(kept) == KEYS.get(base, {"exp_avg", "exp_avg_sq"})
    apply(moved_state(optimizer, names_of(model), network.symmetry, elements))
    for key, here in kept.items():
        everywhere, diagonally = (as_gradients, as_weights), (as_squares, as_bounds)
        if laws_here[key] in everywhere or (network.diagonal and laws_here[key] in diagonally):
            there, moved = entries(other, reference, key), entries(model, optimizer, key)
            laws.memory_moves(here, there, lambda _, moved=moved: moved)
            laws.must_fail(laws.memory_moves, here, there, lambda state: state)


def test_momentum_of_rmsprop_does_not_change_under_diagonal_groups(generator: torch.Generator) -> None:
    def make(p: list[nn.Parameter], lr: float) -> Optimizer:
        return RMSprop(p, lr, momentum=0.9, eps=1e-30)

    start, elements = parameters(RELU.build()), RELU.elements(generator)
    model, optimizer = trained(RELU, make, start)
    other, reference = trained(RELU, make, RELU.symmetry.act(start, elements))
    here, there = entries(model, optimizer, "momentum_buffer"), entries(other, reference, "momentum_buffer")
    laws.memory_moves(here, there, lambda state: state)
    apply(moved_state(optimizer, names_of(model), RELU.symmetry, elements))
    laws.same_bits(entries(model, optimizer, "momentum_buffer"), here)
    laws.must_fail(laws.memory_moves, here, there, lambda v: move(as_gradients, RELU.symmetry, v, elements))


def test_a_step_of_adadelta_does_not_change_under_diagonal_groups(generator: torch.Generator) -> None:
    """Mapped back to where it came from; but for the eps, which is taken away once there is something to divide by."""
    model, optimizer = trained(RELU, BASES["adadelta"], parameters(RELU.build()))
    optimizer.param_groups[0].update(lr=100.0, eps=1e-30)
    elements, batch = RELU.elements(generator), RELU.batch(7)

    def step(moved: bool, keys: set[str]) -> Params:
        there, other = deepcopy((model, optimizer))
        if moved:
            write(there, RELU.symmetry.act(parameters(there), elements))
        kept = {key: entries(there, other, key) for key in KEYS["adadelta"] - keys}
        apply(moved_state(other, names_of(there), RELU.symmetry, elements))
        for key, old in kept.items():
            apply([(other.state[p][key], old[name]) for p, name in names_of(there).items()])
        gradient(RELU, there, batch)
        other.step()
        return parameters(there)

    here = step(moved=False, keys=set())
    laws.must_fail(laws.memory_moves, here, parameters(model), lambda state: state, 1e-2)
    expected = RELU.symmetry.act(here, elements)
    laws.memory_moves(here, expected, lambda _: step(moved=True, keys=KEYS["adadelta"]))
    for keys in (set(), {"square_avg"}, {"acc_delta"}):
        laws.must_fail(laws.memory_moves, here, expected, lambda _, keys=keys: step(moved=True, keys=keys))


def blocks(network: Network, g: Tensor, v: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Element, producer and consumer of the last site as dense blocks (b, k, k), (b, k, d) and (b, m, k)."""
    g = torch.diag_embed(g) if network.diagonal else g
    if network is HEADS:
        return g, v[12:].reshape(2, 3, 6), u.reshape(6, 2, 3).transpose(0, 1)
    return g.unsqueeze(0), v.unsqueeze(0), u.unsqueeze(0)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_a_momentum_step_after_a_teleport_mapped_back_is_preconditioned(
    network: Network, generator: torch.Generator
) -> None:
    """``V - lr (g^T g)^-1 m_V`` and ``U - lr m_U g^T g``."""
    lr, site = 0.05, network.symmetry.sites[-1]
    v_name, u_name = site.producers[0].name, site.consumers[0].name
    model, optimizer = trained(network, lambda p, lr: SGD(p, lr, momentum=0.9), parameters(network.build()))
    start, elements, batch = parameters(model), network.elements(generator), network.batch(7)
    here = gradient(network, model, batch)
    m = {name: 0.9 * b + here[name] for name, b in entries(model, optimizer, "momentum_buffer").items()}
    buffers = entries(model, optimizer, "momentum_buffer")

    def step_after(transported: bool) -> Params:
        write(model, network.symmetry.act(start, elements))
        apply([(optimizer.state[p]["momentum_buffer"], buffers[name]) for p, name in names_of(model).items()])
        if transported:
            apply(moved_state(optimizer, names_of(model), network.symmetry, elements))
        gradient(network, model, batch)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        inverses = [s.group.inverse(g) for s, g in zip(network.symmetry.sites, elements, strict=True)]
        back = network.symmetry.act(parameters(model), inverses)
        _, v, u = blocks(network, elements[-1], back[v_name], back[u_name])
        return {"v": v, "u": u}

    g, v, u = blocks(network, elements[-1], start[v_name], start[u_name])
    _, m_v, m_u = blocks(network, elements[-1], m[v_name], m[u_name])
    metric = g.mT @ g
    derived = {"v": v - lr * torch.linalg.inv(metric) @ m_v, "u": u - lr * m_u @ metric}
    laws.memory_moves(derived, step_after(transported=True), lambda state: state)
    laws.must_fail(laws.memory_moves, derived, step_after(transported=False), lambda state: state)


@pytest.mark.parametrize(("law", "law_of_squares"), [(as_gradients, as_squares), (as_weights, as_squared_weights)])
def test_squares_move_as_their_mean_does_where_nothing_correlates(
    law: Law, law_of_squares: Law, generator: torch.Generator
) -> None:
    """Under GL, to 5 standard errors of 4000 draws; not if the entries of one column are correlated."""
    elements, draws = LINEAR.elements(generator), 4000
    spread = {name: p.abs() + 0.1 for name, p in parameters(LINEAR.build()).items()}

    def law_holds(correlated: bool) -> None:
        drawn = {n: torch.randn(draws, *s.shape, generator=generator, dtype=s.dtype) * s for n, s in spread.items()}
        if correlated:
            drawn = {n: torch.randn(draws, *[1] * s.ndim, generator=generator).to(s) * s for n, s in spread.items()}
        squares = {n: t.square() for n, t in move(law, LINEAR.symmetry, drawn, elements).items()}
        expected = move(law_of_squares, LINEAR.symmetry, {n: s.square() for n, s in spread.items()}, elements)
        for name, samples in squares.items():
            error = (samples.mean(0) - expected[name]).abs()
            assert bool((error <= 5 * samples.std(0) / draws**0.5).all())

    law_holds(correlated=False)
    laws.must_fail(law_holds, correlated=True)


def test_bounds_move_to_the_largest_gradients_within_them(generator: torch.Generator) -> None:
    """Under GL: of all signs that the gradients of one column can have."""
    elements = LINEAR.elements(generator)
    bounds = {name: p.abs() + 0.1 for name, p in parameters(LINEAR.build()).items() if name != "1.bias"}
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
    along = {"0.weight": signs[:, :, None], "0.bias": signs, "1.weight": signs[:, None, :]}
    extremes = move(as_gradients, LINEAR.symmetry, {n: along[n] * b for n, b in bounds.items()}, elements)
    largest = {name: g.abs().amax(0) for name, g in extremes.items()}
    laws.memory_moves(bounds, largest, lambda b: move(as_bounds, LINEAR.symmetry, b, elements))
    laws.must_fail(laws.memory_moves, bounds, largest, lambda b: move(as_gradients, LINEAR.symmetry, b, elements))


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_the_history_of_lbfgs_is_that_of_the_moved_trajectory(network: Network, generator: torch.Generator) -> None:
    model, batch, elements = network.build(), network.batch(), network.elements(generator, size=0.5)
    optimizer = LBFGS(model.parameters(), lr=0.3, max_iter=1)
    visited = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = network_cases.loss(model, batch)
        value.backward()
        return value

    for _ in range(4):
        visited.append(parameters(model))
        optimizer.step(closure)
    visited.append(parameters(model))
    state = optimizer.state[next(iter(model.parameters()))]
    s_y = [float(s.dot(y)) for s, y in zip(state["old_stps"], state["old_dirs"], strict=True)]
    kept = {key: torch.stack(state[key]) for key in ("old_stps", "old_dirs")}
    apply(moved_state(optimizer, names_of(model), network.symmetry, elements))

    points, gradients = [], []
    for params in visited:
        write(model, network.symmetry.act(params, elements))
        points.append(flatten({n: p.unsqueeze(0) for n, p in parameters(model).items()})[0])
        gradients.append(flatten({n: p.unsqueeze(0) for n, p in gradient(network, model, batch).items()})[0])
    there = {
        "old_stps": torch.stack([b - a for a, b in pairwise(points[:4])]),
        "old_dirs": torch.stack([b - a for a, b in pairwise(gradients[:4])]),
    }
    moved = {key: torch.stack(state[key]) for key in there}
    laws.memory_moves(kept, there, lambda _: moved, 1e-11)
    laws.must_fail(laws.memory_moves, kept, there, lambda state: state)
    laws.assert_close((state["d"] * state["t"]).unsqueeze(0), (points[4] - points[3]).unsqueeze(0), 1e-11)
    laws.assert_close(state["prev_flat_grad"].unsqueeze(0), gradients[3].unsqueeze(0), 1e-11)
    for s, y, before, ro in zip(state["old_stps"], state["old_dirs"], s_y, state["ro"], strict=True):
        assert float(s.dot(y)) == pytest.approx(before, rel=1e-10) == pytest.approx(1 / float(ro), rel=1e-10)
    y = state["old_dirs"][-1]
    assert float(state["H_diag"]) == pytest.approx(s_y[-1] / float(y.dot(y)), rel=1e-10)


def test_an_lbfgs_that_has_not_stepped_has_nothing_to_move(generator: torch.Generator) -> None:
    model = LINEAR.build()
    optimizer = LBFGS(model.parameters())
    assert moved_state(optimizer, names_of(model), LINEAR.symmetry, LINEAR.elements(generator)) == []
    assert not optimizer.state


def test_parameters_without_gradient_or_state_are_left_out(generator: torch.Generator) -> None:
    model, elements = LINEAR.build(), LINEAR.elements(generator)
    model[0].weight.requires_grad_(False)
    optimizer = SGD([model[0].bias], 0.1, momentum=0.9)
    gradient(LINEAR, model, LINEAR.batch())
    optimizer.step()
    assert len(moved_gradients(names_of(model), LINEAR.symmetry, elements)) == 2
    assert len(moved_state(optimizer, names_of(model), LINEAR.symmetry, elements)) == 1


@pytest.mark.parametrize("base", [*BASES, "lbfgs"])
def test_reset_state_is_that_of_a_new_optimizer(base: str) -> None:
    """After a reset of all parameters the next step is a new optimizer's first."""

    def make(p: list[nn.Parameter], lr: float) -> Optimizer:
        return LBFGS(p, lr, max_iter=2) if base == "lbfgs" else BASES[base](p, lr)

    def step(model: nn.Module, optimizer: Optimizer) -> Params:
        def closure() -> Tensor:
            optimizer.zero_grad()
            value = network_cases.loss(model, LINEAR.batch(5))
            value.backward()
            return value

        optimizer.step(closure)
        return parameters(model)

    def run(reset: bool) -> tuple[Params, Params]:
        model, start = LINEAR.build(), parameters(LINEAR.build())
        optimizer = make(list(model.parameters()), 0.1)
        first = step(model, optimizer)
        if reset:
            reset_state(optimizer, names_of(model), everywhere)
        write(model, start)
        return step(model, optimizer), first

    last = replace(LINEAR.symmetry.sites[0], producers=(View.along("1.bias", (4,), 0),), consumers=())
    everywhere = Symmetry((*LINEAR.symmetry.sites, last))
    laws.same_bits(*run(reset=True))
    laws.must_fail(laws.same_bits, *run(reset=False))


def test_reset_leaves_parameters_alone_that_no_site_moves() -> None:
    model, optimizer = trained(LINEAR, BASES["adam"], parameters(LINEAR.build()))
    kept = {k: v.clone() for k, v in optimizer.state[model[1].bias].items()}
    reset_state(optimizer, names_of(model), LINEAR.symmetry)
    assert set(optimizer.state) == {model[1].bias}
    laws.same_bits(dict(optimizer.state[model[1].bias]), kept)


def test_a_state_without_law_is_refused_and_can_be_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = Rprop(LINEAR.build().parameters())
    with pytest.raises(UserError, match="how the state of Rprop moves is not known: use state='reset' or 'keep'"):
        laws_of(optimizer)
    monkeypatch.setitem(LAWS, Rprop, {"prev": as_gradients})
    assert laws_of(optimizer) == {"prev": as_gradients}


def test_sites_that_are_not_linear_are_refused() -> None:
    symmetry = mlp_symmetry(MLP((6, 5, 4)), "general_linear")
    with pytest.raises(UserError, match="acts by GeneralLinearSite, which is not the same linear map for every input"):
        require_linear(symmetry)
    for network in NETWORKS:
        require_linear(network.symmetry)
