"""Second moments in factors (Shampoo, SOAP, Adafactor) along the group action."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import laws
import network_cases
import pytest
import pytorch_optimizer
import torch
from network_cases import HEADS, LINEAR, NETWORKS, RELU, Network, parameters, write
from torch import Tensor, nn
from torch.optim import Adafactor, Optimizer

from meta_teleport.errors import UserError
from meta_teleport.optimizers.teleported import TeleportedOptimizer
from meta_teleport.optimizers.transport import laws_of, moved_state
from meta_teleport.params import Params
from meta_teleport.symmetry.symmetry import Symmetry

Make = Callable[[list[nn.Parameter], float], Optimizer]

ALONG = {
    "relu": {"0.weight": 0, "0.bias": 0, "2.weight": 1},
    "linear": {"0.weight": 0, "0.bias": 0, "1.weight": 1},
    "heads": {"in_proj.weight": 0, "in_proj.bias": 0, "out_proj.weight": 1},
}
"""Along which axis the sites move a parameter."""


def shampoo(p: list[nn.Parameter], lr: float) -> Optimizer:
    return pytorch_optimizer.Shampoo(p, lr or 1e-30, preconditioning_compute_steps=100, matrix_eps=1e-30)


def soap(p: list[nn.Parameter], lr: float) -> Optimizer:
    return pytorch_optimizer.SOAP(p, lr or 1e-30, precondition_frequency=2, weight_decay=0.0)


def torchs(p: list[nn.Parameter], lr: float) -> Optimizer:
    return Adafactor(p, lr)


def anothers(p: list[nn.Parameter], lr: float) -> Optimizer:
    return pytorch_optimizer.AdaFactor(p, lr or 1e-30, scale_parameter=False, relative_step=False, weight_decay=0.0)


def transformer(p: list[nn.Parameter], lr: float) -> Optimizer:
    import transformers  # takes seconds

    return transformers.Adafactor(p, lr=lr, scale_parameter=False, relative_step=False)


def names_of(model: nn.Module) -> dict[Tensor, str]:
    return {p: name for name, p in model.named_parameters()}


def gradient(model: nn.Module, batch: network_cases.Batch) -> None:
    model.zero_grad()
    network_cases.loss(model, batch).backward()


def trained(network: Network, make: Make, params: Params, lr: float = 0.0) -> tuple[nn.Module, Optimizer]:
    """A model at ``params`` and an optimizer that has seen four batches; with lr 0, all of them there."""
    model = network.build()
    write(model, params)
    optimizer = make(list(model.parameters()), lr)
    for seed in range(4):
        gradient(model, network.batch(seed))
        optimizer.step()
        if not lr:
            write(model, params)
    return model, optimizer


def transport(network: Network, model: nn.Module, optimizer: Optimizer, elements: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        for tensor, value in moved_state(optimizer, names_of(model), network.symmetry, elements):
            assert tensor.shape == value.shape
            tensor.copy_(value)


def grams(model: nn.Module, optimizer: Optimizer) -> dict[tuple[str, int], Tensor]:
    found: dict[tuple[str, int], Tensor] = {}
    for p, name in names_of(model).items():
        state = optimizer.state[p]
        own = state["GG"] if "GG" in state else [state[f"pre_cond_{axis}"] for axis in range(p.ndim)]
        found |= {(name, axis): gram.clone() for axis, gram in enumerate(own) if len(gram)}
    return found


@pytest.mark.parametrize("make", [shampoo, soap])
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_gram_matrices_are_those_that_would_have_been_gathered_there(
    network: Network, make: Make, generator: torch.Generator
) -> None:
    """``g^-T L g^-1`` along the axis that moves; along the other, of the right trace."""
    start, elements = parameters(network.build()), network.elements(generator)
    model, optimizer = trained(network, make, start)
    other, reference = trained(network, make, network.symmetry.act(start, elements))
    kept, there = grams(model, optimizer), grams(other, reference)
    transport(network, model, optimizer, elements)
    moved, along = grams(model, optimizer), ALONG[str(network)]
    exact = {key: gram for key, gram in there.items() if along.get(key[0]) == key[1]}
    others = {key: gram for key, gram in there.items() if key[0] in along and key not in exact}
    assert len(exact) >= 2 and len(others) == 2

    def holds(found: dict[tuple[str, int], Tensor]) -> None:
        for key, gram in exact.items():
            laws.assert_close(found[key].unsqueeze(0), gram.unsqueeze(0), 1e-11)
        for key, gram in others.items():
            laws.assert_close(found[key].trace().view(1), gram.trace().view(1), 1e-11)

    holds(moved)
    laws.must_fail(holds, kept)
    for key in moved.keys() - exact.keys() - others.keys():
        laws.same_bits(moved[key], kept[key])


def orthogonal(network: Network, generator: torch.Generator) -> tuple[Tensor, ...]:
    return tuple(torch.linalg.qr(g).Q for g in network.elements(generator))


def eager_shampoo(p: list[nn.Parameter], lr: float) -> Optimizer:
    return pytorch_optimizer.Shampoo(p, lr, matrix_eps=0.1)


def late_shampoo(p: list[nn.Parameter], lr: float) -> Optimizer:
    return pytorch_optimizer.Shampoo(p, lr, preconditioning_compute_steps=4, matrix_eps=0.1)


def soap_of_vectors_too(p: list[nn.Parameter], lr: float) -> Optimizer:
    return pytorch_optimizer.SOAP(p, lr, precondition_frequency=2, weight_decay=0.0, precondition_1d=True)


@pytest.mark.parametrize(
    ("network", "make"),
    [
        *((network, make) for network in (LINEAR, HEADS) for make in (eager_shampoo, late_shampoo)),
        (LINEAR, soap_of_vectors_too),  # it divides by the gradient of a key's bias, which is rounding
    ],
)
def test_steps_after_an_orthogonal_teleport_are_moved_steps(
    network: Network, make: Make, generator: torch.Generator
) -> None:
    elements = orthogonal(network, generator)

    def steps(teleported: bool, transported: bool = True) -> Params:
        there, its = trained(network, make, parameters(network.build()), lr=0.01)
        if teleported:
            write(there, network.symmetry.act(parameters(there), elements))
            if transported:
                transport(network, there, its, elements)
        gradient(there, network.batch(7))
        its.step()
        return {name: p.unsqueeze(0) for name, p in parameters(there).items()}

    here = {name: p[0] for name, p in steps(teleported=False).items()}
    expected = {name: p.unsqueeze(0) for name, p in network.symmetry.act(here, elements).items()}
    rounding = 1e-9 if make is not soap_of_vectors_too else 100 * torch.finfo(torch.float32).eps  # of SOAP's bases
    laws.params_close(steps(teleported=True), expected, rounding)
    laws.must_fail(laws.params_close, steps(teleported=True, transported=False), expected, 10 * rounding)


def test_rotated_squares_move_as_their_mean_does_where_nothing_correlates(generator: torch.Generator) -> None:
    """To 5 standard errors of 4000 draws, in the new bases."""
    model, optimizer = trained(LINEAR, soap, parameters(LINEAR.build()))
    elements = LINEAR.elements(generator)
    weight = model[1].weight  # (4, 4), moves along axis 1
    state = optimizer.state[weight]
    left, right = (q.clone() for q in state["Q"])
    state["exp_avg_sq"] = torch.rand(4, 4, generator=generator, dtype=torch.float64) + 0.1
    drawn = torch.randn(4000, 4, 4, generator=generator, dtype=torch.float64) * state["exp_avg_sq"].sqrt()
    gradients = left @ drawn @ right.T @ elements[0].T
    stale = state["exp_avg_sq"].clone()
    transport(LINEAR, model, optimizer, elements)
    left, right = state["Q"]
    laws.assert_close((right.T @ right).unsqueeze(0), torch.eye(4, dtype=torch.float64).unsqueeze(0), 1e-12)
    found = (left.T @ gradients @ right).square()

    def holds(squares: Tensor) -> None:
        assert bool(((found.mean(0) - squares).abs() <= 5 * found.std(0) / 4000**0.5).all())

    holds(state["exp_avg_sq"])
    laws.must_fail(holds, stale)


def squares_of(state: dict[str, Any]) -> Tensor:
    rows = state.get("row_var", state.get("exp_avg_sq_row"))
    columns = state.get("col_var", state.get("exp_avg_sq_col"))
    r, c = (rows, columns) if "row_var" in state else (rows.unsqueeze(-1), columns.unsqueeze(-2))
    return r * c / r.mean(-2, keepdim=True)


@pytest.mark.parametrize("make", [torchs, anothers, pytest.param(transformer, marks=pytest.mark.slow)])
def test_factors_of_adafactor_stand_for_moved_squares(make: Make, generator: torch.Generator) -> None:
    """Under scalings: means over what does not move are what would have been gathered there; what both factors stand
    for moves as squares do."""
    start, elements = parameters(RELU.build()), RELU.elements(generator)
    model, optimizer = trained(RELU, make, start)
    other, reference = trained(RELU, make, RELU.symmetry.act(start, elements))
    g = elements[0]
    before = {i: squares_of(optimizer.state[model[i].weight]) for i in (0, 2)}
    kept = deepcopy({i: dict(optimizer.state[model[i].weight]) for i in (0, 2)})
    transport(RELU, model, optimizer, elements)
    moved = {i: optimizer.state[model[i].weight] for i in (0, 2)}
    expected = {0: before[0] / g.square().unsqueeze(1), 2: before[2] * g.square()}
    for i in (0, 2):
        laws.assert_close(squares_of(moved[i]).unsqueeze(0), expected[i].unsqueeze(0), 1e-11)
        keys = ("row_var", "exp_avg_sq_row") if i == 0 else ("col_var", "exp_avg_sq_col")
        (key,) = (key for key in keys if key in moved[i])
        there = reference.state[other[i].weight][key].flatten().unsqueeze(0)
        laws.assert_close(moved[i][key].flatten().unsqueeze(0), there, 1e-11)
        laws.must_fail(laws.assert_close, kept[i][key].flatten().unsqueeze(0), there, 1e-3)


@pytest.mark.parametrize("make", [shampoo, soap, torchs, anothers])
def test_convolutions_move_along_their_channels(make: Make, generator: torch.Generator) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Conv2d(3, 4, 2)).double()
    symmetry = Symmetry.manual(model, {"hidden": ("scaling", ["0.weight", "0.bias"], ["2.weight"])})
    elements = (torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64),)
    x = torch.randn(3, 2, 5, 5, generator=generator, dtype=torch.float64)
    other = deepcopy(model)
    write(other, symmetry.act(parameters(model), elements))
    runs = []
    for net in (model, other):
        start, optimizer = parameters(net), make(list(net.parameters()), 0.0)
        for scale in (1.0, 2.0, 3.0):
            net.zero_grad()
            (net(x * scale).square().mean()).backward()
            optimizer.step()
            write(net, start)
        runs.append(optimizer)
    with torch.no_grad():
        for tensor, value in moved_state(runs[0], names_of(model), symmetry, elements):
            tensor.copy_(value)
    for i, axis in ((0, 0), (2, 1)):
        found, there = runs[0].state[model[i].weight], runs[1].state[other[i].weight]
        if make in (shampoo, soap):
            a, b = (s["GG"][axis] if "GG" in s else s[f"pre_cond_{axis}"] for s in (found, there))
            laws.assert_close(a.unsqueeze(0), b.unsqueeze(0), 1e-11)
        else:
            ratio = squares_of(found).movedim(axis, 0).flatten(1).sum(1)
            assert ratio.shape == (3,) and bool(ratio.isfinite().all())


@pytest.mark.parametrize("make", [shampoo, eager_shampoo, soap, torchs, anothers])
def test_they_teleport_in_training(make: Make) -> None:
    model = RELU.build()
    optimizer = TeleportedOptimizer(
        make(list(model.parameters()), 1e-3), model, RELU.symmetry, "balanced", 2, loss=network_cases.loss,
        batches=lambda: RELU.batch(9),
    )  # fmt: skip
    for seed in range(5):
        gradient(model, RELU.batch(seed))
        optimizer.step()
    assert [r.accepted for r in optimizer.teleports] == [True, True]
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_what_has_no_law_is_refused(generator: torch.Generator) -> None:
    model = RELU.build()
    with pytest.raises(UserError, match="Shampoo with momentum keeps preconditioned gradients, which have no law"):
        laws_of(pytorch_optimizer.Shampoo(model.parameters(), momentum=0.9))
    noted = lambda p, lr: pytorch_optimizer.Lion(p, 1e-3, adanorm=True)  # noqa: E731
    model, optimizer = trained(RELU, noted, parameters(model))
    with pytest.raises(UserError, match="the state of Lion has an entry 'exp_grad_adanorm' that has no law"):
        moved_state(optimizer, names_of(model), RELU.symmetry, RELU.elements(generator))
    small = lambda p, lr: pytorch_optimizer.SOAP(p, 1e-3, max_precondition_dim=5)  # noqa: E731
    model, optimizer = trained(LINEAR, small, parameters(LINEAR.build()))
    transport(LINEAR, model, optimizer, LINEAR.elements(generator))
    smaller = lambda p, lr: pytorch_optimizer.SOAP(p, 1e-3, max_precondition_dim=4)  # noqa: E731
    model, optimizer = trained(RELU, smaller, parameters(RELU.build()))
    with pytest.raises(UserError, match="an axis without a preconditioner moves: raise max_precondition_dim"):
        moved_state(optimizer, names_of(model), RELU.symmetry, RELU.elements(generator))


def test_preconditioners_of_merged_dimensions_are_refused() -> None:
    """One Gram matrix of 2 x 2 x 2 merged inputs, in place of one per axis."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Conv2d(3, 4, 2)).double()
    symmetry = Symmetry.manual(model, {"hidden": ("scaling", ["0.weight", "0.bias"], ["2.weight"])})
    optimizer = pytorch_optimizer.SOAP(model.parameters(), 1e-3)
    for _ in range(2):
        model.zero_grad()
        model(torch.ones(1, 2, 5, 5, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    state, elements = optimizer.state[model[0].weight], (torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64),)
    assert len(moved_state(optimizer, names_of(model), symmetry, elements)) > 0
    state["GG"], state["Q"] = ([state[key][0], torch.eye(8, dtype=torch.float64)] for key in ("GG", "Q"))
    with pytest.raises(UserError, match="preconditioners of merged dimensions have no law"):
        moved_state(optimizer, names_of(model), symmetry, elements)
