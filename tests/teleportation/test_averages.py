"""Averages of functions of the parameters."""

import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.params import Params, rows
from meta_teleport.teleportation.averages import average


def powers(count: int) -> Iterator[Callable[[Params], Tensor]]:
    """The sums of the first powers of w; what is not w plays no part."""
    for i in range(count):
        yield lambda params, i=i: rows(params["w"] ** (i + 1)).sum(1)


def leaves(generator: torch.Generator) -> Params:
    drawn = {n: torch.randn(3, *s, generator=generator, dtype=torch.float64) for n, s in (("w", (2, 4)), ("b", (2,)))}
    return {name: p.requires_grad_() for name, p in drawn.items()}


def test_value_and_gradient_are_those_of_the_mean(generator: torch.Generator) -> None:
    params, weight = leaves(generator), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    ours, plain = average(powers(4), params), torch.stack([term(params) for term in powers(4)]).mean(0)
    assert torch.allclose(ours, plain, rtol=1e-12)
    w, b = torch.autograd.grad(ours, list(params.values()), weight)
    (expected,) = torch.autograd.grad(plain, params["w"], weight)
    assert torch.allclose(w, expected, rtol=1e-12) and not b.any()
    moved = {name: 2 * p for name, p in params.items()}
    through = torch.autograd.grad(average(powers(4), moved).sum(), params["w"])[0]
    assert torch.allclose(through, sum(2 * (i + 1) * (2 * params["w"]) ** i for i in range(4)) / 4, rtol=1e-12)


def test_no_gradient_is_taken_where_none_can_be_wanted(generator: torch.Generator) -> None:
    params, seen = leaves(generator), []

    def term(p: Params) -> Tensor:
        seen.append(p["w"].requires_grad)
        return rows(p["w"]).sum(1)

    with torch.no_grad():
        average([term], params)
    average([term], {name: p.detach() for name, p in params.items()})
    assert seen == [False, False]
    assert average([term], params).requires_grad and seen[-1]


def test_a_second_derivative_is_refused(generator: torch.Generator) -> None:
    params = leaves(generator)
    with pytest.raises(UserError, match="can be differentiated once: leave create_graph out"):
        torch.autograd.grad(average(powers(3), params).sum(), params["w"], create_graph=True)


def test_the_memory_is_that_of_one_term(generator: torch.Generator) -> None:
    """What a term keeps for its gradient is gone when the next one starts; a plain sum keeps all of it."""
    params, kept, alive = leaves(generator), [], []

    def term(p: Params) -> Tensor:
        alive.append(sum(reference() is not None for reference in kept))
        result = p["w"].exp()
        kept.append(weakref.ref(result))
        return rows(result.square()).sum(1)

    average([term] * 5, params)
    assert alive == [0] * 5
    kept.clear(), alive.clear()
    terms = [term(params) for _ in range(5)]
    assert len(terms) == 5 and alive == list(range(5))
