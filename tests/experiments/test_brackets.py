"""Derivatives along fields and the Lie bracket, against what they are by definition and in closed form."""

import laws
import tolerances
import torch
from torch import Tensor
from torch.func import vmap

from experiments.theory.brackets import Field, Function, derivative, gradient_flow, lie_bracket, squared_slope

COUNT = 7


def points(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(COUNT, *shape, generator=generator, dtype=torch.float64)


def swirl(x: Tensor) -> Tensor:
    return torch.stack([x[1] * x[2], x[0].sin(), x[0] - x[1] ** 2])


def drain(x: Tensor) -> Tensor:
    return torch.stack([-x[0], x[2].exp() / 5, x[0] * x[1]])


def height(x: Tensor) -> Tensor:
    return x[0] ** 2 * x[1] + x[2].cos()


def commutator(a: Field, r: Field, function: Function) -> Function:
    first, second = derivative(a, derivative(r, function)), derivative(r, derivative(a, function))
    return lambda x: first(x) - second(x)


def test_the_bracket_is_the_commutator_of_derivatives(generator: torch.Generator) -> None:
    x = points(generator, 3)
    actual = vmap(derivative(lie_bracket(swirl, drain), height))(x)
    laws.assert_close(actual, vmap(commutator(swirl, drain, height))(x), 1e-12)
    laws.must_fail(laws.assert_close, actual, vmap(commutator(drain, swirl, height))(x), 1e-3)


def test_the_bracket_of_linear_fields_is_that_of_their_matrices(generator: torch.Generator) -> None:
    x, (b, m) = points(generator, 3), torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    actual = vmap(lie_bracket(lambda w: b @ w, lambda w: m @ w))(x)
    expected = x @ (m @ b - b @ m).mT
    norms = x.norm(dim=1) * m.norm() * b.norm() / expected.norm(dim=1)
    laws.assert_close(actual, expected, tolerances.summed(3 + 3 + 1, 2 * float(norms.max())))
    laws.must_fail(laws.assert_close, actual, x @ (b @ m).mT, 1e-3)


def test_a_derivative_is_that_of_central_differences(generator: torch.Generator) -> None:
    x, step = points(generator, 3), 1e-5
    moved = step * vmap(swirl)(x)
    differences = (vmap(height)(x + moved) - vmap(height)(x - moved)) / (2 * step)
    laws.assert_close(vmap(derivative(swirl, height))(x), differences, 1e-8, scale=1.0)


def test_dictionaries_of_factors_under_a_linear_action(generator: torch.Generator) -> None:
    """L = |U V - M|^2 / 2 and the field (-U T, T V): R L = 0, R A f = -2 [A, R] f, A R f = -[A, R] f."""
    target, t = points(generator, 4, 5), points(generator, 3, 3)
    x = {"u": points(generator, 4, 3), "v": points(generator, 3, 5)}

    def measured(point: dict[str, Tensor], target: Tensor, t: Tensor) -> Tensor:
        def loss(w: dict[str, Tensor]) -> Tensor:
            return (w["u"] @ w["v"] - target).square().sum() / 2

        def field(w: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"u": -w["u"] @ t, "v": t @ w["v"]}

        flow, f = gradient_flow(loss), squared_slope(loss)
        functions = (
            derivative(field, loss),
            f,
            derivative(lie_bracket(flow, field), f),
            derivative(field, derivative(flow, f)),
            derivative(flow, derivative(field, f)),
        )
        return torch.stack([function(point) for function in functions])

    along, f, bracket, raf, arf = vmap(measured)(x, target, t).unbind(1)
    assert float((along / f).abs().max()) < 1e-12
    assert float((bracket / f).abs().min()) > 1e-2
    laws.assert_close(raf, -2 * bracket, 1e-11)
    laws.assert_close(arf, -bracket, 1e-11)
    laws.must_fail(laws.assert_close, arf, bracket, 1e-3)
