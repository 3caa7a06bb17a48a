"""All base optimizers with their options, precisions and odd parameters: the base's steps to the bit, or one line."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_optimizer
import schedulefree
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import meta_teleport as mt
from meta_teleport.errors import UserError

Make = Callable[[list[nn.Parameter]], Optimizer]
LR = 1e-2
DTYPES = (torch.float32, torch.float64, torch.bfloat16)

COMMON: dict[str, dict[str, Any]] = {
    "plain": {},
    "foreach": {"foreach": True},
    "one by one": {"foreach": False},
    "maximize": {"maximize": True},
    "decay": {"weight_decay": 0.1},
    "differentiable": {"differentiable": True},
    "tensor lr": {"lr": torch.tensor(LR), "foreach": False},
}
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "SGD": {
        "momentum": {"momentum": 0.9},
        "nesterov": {"momentum": 0.9, "nesterov": True},
        "dampening": {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1, "maximize": True},
        "fused": {"momentum": 0.9, "fused": True},
    },
    "Adam": {"amsgrad": {"amsgrad": True}, "fused": {"fused": True}, "capturable": {"capturable": False}},
    "AdamW": {"amsgrad": {"amsgrad": True, "maximize": True}, "fused": {"fused": True}},
    "NAdam": {"decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.1}},
    "RAdam": {"decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.1}},
    "Adamax": {},
    "Adadelta": {},
    "Adagrad": {"start": {"initial_accumulator_value": 0.1, "lr_decay": 0.1}, "fused": {"fused": True}},
    "RMSprop": {"centered": {"centered": True}, "momentum": {"momentum": 0.9, "centered": True}},
    "ASGD": {"early": {"t0": 1}},
    "Rprop": {},
}
"""Torch's optimizers by name and, beside the common options, their own."""


def usual(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Those that every optimizer takes; some cannot step where one is empty or not contiguous."""
    return [p for p in parameters if p.numel() and p.is_contiguous()]


OTHERS: dict[str, Make] = {
    "Adafactor": lambda p: torch.optim.Adafactor(usual(p), LR),
    "Adafactor, odd": lambda p: torch.optim.Adafactor(p, LR),
    "LBFGS": lambda p: torch.optim.LBFGS(usual(p), LR, max_iter=3),
    "LBFGS, odd": lambda p: torch.optim.LBFGS(p, LR, max_iter=3),
    "LBFGS, line search": lambda p: torch.optim.LBFGS(usual(p), 1.0, max_iter=3, line_search_fn="strong_wolfe"),
    "SparseAdam": lambda p: torch.optim.SparseAdam(p, LR),
    "SGDScheduleFree": lambda p: schedulefree.SGDScheduleFree(p, LR),
    "AdamWScheduleFree": lambda p: schedulefree.AdamWScheduleFree(p, LR, warmup_steps=2),
    "RAdamScheduleFree": lambda p: schedulefree.RAdamScheduleFree(p, LR),
    "Lion": lambda p: pytorch_optimizer.Lion(p, LR),
    "AdaFactor": lambda p: pytorch_optimizer.AdaFactor(p, LR),
    "SOAP": lambda p: pytorch_optimizer.SOAP(p, LR),
    "Shampoo": lambda p: pytorch_optimizer.Shampoo(usual(p), LR),
    "AdaBelief": lambda p: pytorch_optimizer.AdaBelief(p, LR),
}
FAST = ("SGD, plain", "SGD, nesterov", "Adam, foreach", "AdamW, amsgrad", "Adagrad, start", "AdamWScheduleFree", "Lion")


def made(name: str, options: dict[str, Any]) -> Make:
    chosen = {"lr": LR, **options}
    if isinstance(chosen["lr"], Tensor):
        return lambda p: getattr(torch.optim, name)(p, **{**chosen, "lr": chosen["lr"].clone()})
    return lambda p: getattr(torch.optim, name)(p, **chosen)


def matrix() -> Iterator[tuple[str, Make]]:
    for name, own in OWN.items():
        for option, options in {**COMMON, **own}.items():
            yield f"{name}, {option}", made(name, options)
    yield from OTHERS.items()


BASES = dict(matrix())


class Odd(nn.Module):
    """Units to scale, and parameters that are empty, scalar, tied, frozen, not contiguous, and in no group's way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)
        self.tied, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.tied.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.scale = nn.Parameter(torch.ones(()))
        self.across = nn.Parameter(torch.randn(3, 4).t())
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        x = self.frozen(self.other(torch.tanh(self.tied(x))))
        return self.scale * x @ self.across + self.empty.sum()


SITE = {"hidden": ("scaling", ["first.weight", "first.bias"], ["second.weight"])}


def built(dtype: torch.dtype) -> tuple[Odd, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Odd().to(dtype), torch.randn(8, 6).to(dtype), torch.randn(8, 3).to(dtype)


def take(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, steps: int) -> None:
    """Steps with a closure, as L-BFGS needs one."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    if hasattr(optimizer, "train") and "ScheduleFree" in type(getattr(optimizer, "base", optimizer)).__name__:
        optimizer.train()
    for _ in range(steps):
        optimizer.step(closure)


def outcome(run: Callable[[], None]) -> type[Exception] | None:
    """The error, if one is raised; what is ours has one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
    except UserError as error:
        assert "\n" not in str(error)
        return UserError
    except Exception as error:
        return type(error)
    return None


def check(make: Make, dtype: torch.dtype) -> None:
    plain, x, y = built(dtype)
    error = outcome(lambda: take(plain, make(list(plain.parameters())), x, y, 3))
    model, _, _ = built(dtype)
    found: list[mt.TeleportedOptimizer] = []

    def wrap(state: str) -> None:
        symmetry = mt.Symmetry.manual(model, SITE)
        found.append(mt.TeleportedOptimizer(make(list(model.parameters())), model, symmetry, "balanced", state=state))

    refused = outcome(lambda: wrap("transport"))
    if dtype == torch.bfloat16:
        assert refused is UserError  # half precision keeps no digits to move
        return
    if refused is UserError:  # there is no law
        refused = outcome(lambda: wrap("reset"))
    assert refused in (None, error)
    if refused:
        return

    def steps() -> None:
        take(model, found[0], x, y, 3)

    assert outcome(steps) in (error, UserError)
    same = all(torch.equal(p, q) for p, q in zip(plain.parameters(), model.parameters(), strict=True))
    assert same or error is not None
    if error is not None:
        return
    before = (model(x) - y).square().mean()
    record = found[0].teleport()
    assert record.accepted, record.reason
    after = (model(x) - y).square().mean()
    assert abs(float((after - before).detach())) <= 100 * torch.finfo(dtype).eps * float(before.detach())
    assert outcome(lambda: take(model, found[0], x, y, 2)) is None
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("base", FAST)
def test_a_step_is_the_bases_to_the_bit_or_refused_in_one_line(base: str, dtype: torch.dtype) -> None:
    check(BASES[base], dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("base", [base for base in BASES if base not in FAST])
def test_so_is_every_step_of_every_optimizer(base: str, dtype: torch.dtype) -> None:
    check(BASES[base], dtype)


@pytest.mark.parametrize("lr", [0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_learned_optimizer_takes_odd_parameters_or_refuses_in_one_line(dtype: torch.dtype, lr: float) -> None:
    model, x, y = built(dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers: list[Any] = []

    def make() -> None:
        optimizers.append(mt.load("factors").optimizer(model, symmetry=mt.Symmetry.manual(model, SITE), lr=lr))

    def steps() -> None:
        for _ in range(3):
            optimizers[0].step((model(x) - y).square().mean())

    assert (outcome(make) is UserError) == (dtype == torch.bfloat16)
    if dtype == torch.bfloat16:
        return
    with torch.no_grad():
        outputs = model(x)
    assert outcome(steps) is None
    after = dict(model.named_parameters())
    assert all(bool(p.isfinite().all()) for p in after.values())
    for name in ("frozen.weight", "frozen.bias", "unused"):
        assert torch.equal(after[name], before[name])
    with torch.no_grad():
        moved = float((model(x) - outputs).norm() / outputs.norm())
    assert (moved <= 1000 * torch.finfo(dtype).eps) == (lr == 0)
