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
