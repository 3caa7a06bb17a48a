"""The algebra on parameter sets."""

import torch
from torch import nn

from meta_teleport import params as P


def two(generator: torch.Generator) -> tuple[P.Params, P.Params]:
    def draw() -> P.Params:
        return {
            "w": torch.randn(3, 4, 2, generator=generator, dtype=torch.float64),
            "b": torch.randn(3, 4, generator=generator, dtype=torch.float64),
            "s": torch.randn(3, generator=generator, dtype=torch.float64),
        }

    return draw(), draw()


def test_flatten_and_back(generator: torch.Generator) -> None:
    x, _ = two(generator)
    rows = P.flatten(x)
    assert rows.shape == (3, 13)
    back = P.unflatten(rows, x)
    assert list(back) == list(x)
    assert all(torch.equal(back[name], x[name]) for name in x)


def test_dot_and_norm_are_those_of_the_rows(generator: torch.Generator) -> None:
    x, y = two(generator)
    assert torch.allclose(P.dot(x, y), (P.flatten(x) * P.flatten(y)).sum(1), rtol=1e-12)
    assert torch.allclose(P.norm(x), P.flatten(x).norm(dim=1), rtol=1e-12)


def test_axpy_with_a_number_and_with_one_per_task(generator: torch.Generator) -> None:
    x, y = two(generator)
    a = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    assert torch.allclose(P.flatten(P.axpy(-2.0, x, y)), P.flatten(y) - 2 * P.flatten(x))
    assert torch.allclose(P.flatten(P.axpy(a, x, y)), P.flatten(y) + a[:, None] * P.flatten(x))


def test_where_chooses_per_task(generator: torch.Generator) -> None:
    x, y = two(generator)
    mask = torch.tensor([True, False, True])
    chosen = P.flatten(P.where(mask, x, y))
    assert torch.equal(chosen[[0, 2]], P.flatten(x)[[0, 2]])
    assert torch.equal(chosen[1], P.flatten(y)[1])


def test_detach_keeps_numbers_and_cuts_the_graph(generator: torch.Generator) -> None:
    x, _ = two(generator)
    leaves = {name: t.requires_grad_() for name, t in x.items()}
    cut = P.detach(leaves)
    assert all(not t.requires_grad and torch.equal(t, leaves[name]) for name, t in cut.items())


def test_functional_never_reads_the_models_own_parameters(generator: torch.Generator) -> None:
    model = nn.Linear(2, 4).double()
    x, _ = two(generator)
    params = {"weight": x["w"], "bias": x["b"]}
    inputs = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    expected = inputs @ x["w"].mT + x["b"].unsqueeze(1)
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    assert torch.allclose(P.functional(model)(params, inputs), expected, rtol=1e-12)


def test_value_and_grad_gives_each_task_its_own_value_and_slope(generator: torch.Generator) -> None:
    x, _ = two(generator)
    with torch.no_grad():
        values, slopes = P.value_and_grad(lambda w: P.rows(w["w"]).square().sum(1) * w["s"], x)
    assert not values.requires_grad and not any(g.requires_grad for g in slopes.values())
    squares = x["w"].square().sum((1, 2))
    torch.testing.assert_close(values, squares * x["s"], rtol=1e-14, atol=0)
    torch.testing.assert_close(slopes["w"], 2 * P.per_task(x["s"], x["w"]) * x["w"], rtol=1e-14, atol=0)
    torch.testing.assert_close(slopes["s"], squares, rtol=1e-14, atol=0)
    assert list(slopes) == ["w", "b", "s"] and not slopes["b"].any()


def test_value_and_grad_can_stay_in_the_graph(generator: torch.Generator) -> None:
    """At ``a = 2 s, b = 2.5 a``: what these were made of is differentiated by, and the slopes do not run through it."""
    s = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
    a = 2 * s
    values, slopes = P.value_and_grad(lambda w: w["a"] ** 3 + w["b"], {"a": a, "b": 2.5 * a}, create_graph=True)
    torch.testing.assert_close(slopes["a"], 12 * s.square(), rtol=1e-14, atol=0)
    assert torch.equal(slopes["b"], torch.ones_like(s))
    (second,) = torch.autograd.grad(slopes["a"].sum(), s, retain_graph=True)
    torch.testing.assert_close(second, 24 * s.detach(), rtol=1e-14, atol=0)
    (first,) = torch.autograd.grad(values.sum(), s)
    torch.testing.assert_close(first, 24 * s.detach().square() + 5, rtol=1e-14, atol=0)
