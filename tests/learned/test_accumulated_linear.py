"""Gathered weight gradients equal those of plain autograd, however often the weight is used."""

from collections.abc import Callable
from weakref import ref

import laws
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from meta_teleport.learned import accumulated_linear as module
from meta_teleport.learned.accumulated_linear import linear


def leaves(generator: torch.Generator) -> list[Tensor]:
    shapes = ((6, 6), (6,), (3, 6), (3,))
    return [torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def run(function: Callable[..., Tensor], weights: list[Tensor], x: Tensor, uses: int) -> Tensor:
    """A recurrence that uses both weights ``uses`` times, with an input gradient between the uses."""
    total = x.new_zeros(())
    for _ in range(uses):
        x = torch.tanh(function(x, weights[0], weights[1])) + 0.5 * x
        total = total + function(x, weights[2], weights[3]).square().sum()
    return total


@pytest.mark.parametrize("uses", [1, 2, 7])
@pytest.mark.parametrize("tasks", [1, 4, 40])
def test_equals_plain_autograd(uses: int, tasks: int, generator: torch.Generator) -> None:
    weights = leaves(generator)
    x = torch.randn(tasks, 6, generator=generator, dtype=torch.float64).requires_grad_()
    ours = torch.autograd.grad(run(linear, weights, x, uses), [*weights, x])
    plain = torch.autograd.grad(run(F.linear, weights, x, uses), [*weights, x])
    for mine, other in zip(ours, plain, strict=True):
        laws.assert_close(mine, other, 1e-12)


def test_the_law_sees_a_use_that_is_not_counted(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = leaves(generator)
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    plain = torch.autograd.grad(run(F.linear, weights, x, 3), weights)
    add, calls = module._Sum.add, []

    def forgetful(total: module._Sum, delta: Tensor, rows: Tensor) -> None:
        calls.append(1)
        if len(calls) != 2:
            add(total, delta, rows)

    monkeypatch.setattr(module._Sum, "add", forgetful)
    ours = torch.autograd.grad(run(linear, weights, x, 3), weights)
    laws.must_fail(laws.assert_close, torch.cat([g.flatten() for g in ours])[None],
                   torch.cat([g.flatten() for g in plain])[None], 1e-6)  # fmt: skip


def test_two_windows_with_the_same_leaves_do_not_mix(generator: torch.Generator) -> None:
    weights = leaves(generator)
    for _ in range(3):
        x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        ours = torch.autograd.grad(run(linear, weights, x, 3), weights)
        plain = torch.autograd.grad(run(F.linear, weights, x, 3), weights)
        for mine, other in zip(ours, plain, strict=True):
            laws.assert_close(mine, other, 1e-12)


def test_without_gradients_it_is_the_plain_map(generator: torch.Generator) -> None:
    weight, bias = (t.detach() for t in leaves(generator)[:2])
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert not hasattr(weight, "gathered")


@pytest.mark.parametrize("backward", [True, False])
def test_the_leaves_of_a_window_are_let_go(backward: bool, generator: torch.Generator) -> None:
    weights = leaves(generator)
    total = run(linear, weights, torch.randn(4, 6, generator=generator, dtype=torch.float64), 3)
    if backward:
        total.backward()
    del total
    kept = [ref(weight) for weight in weights]
    del weights
    assert not any(weight() is not None for weight in kept)
