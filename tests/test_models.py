"""The MLP and the table of activations."""

import pytest
import tolerances
import torch

from meta_teleport.activations import ACTIVATIONS
from meta_teleport.errors import UserError
from meta_teleport.models import MLP

LINE = torch.linspace(-4, 4, 101, dtype=torch.float64)


def test_mlp_is_the_formula(generator: torch.Generator) -> None:
    model = MLP((3, 5, 4, 2), "leaky_relu", bias=True).double()
    assert [name for name, _ in model.named_parameters()][:2] == ["layers.0.weight", "layers.0.bias"]
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    h = x
    for i, layer in enumerate(model.layers):
        h = h @ layer.weight.T + layer.bias
        h = torch.where(h > 0, h, 0.1 * h) if i < 2 else h
    assert torch.allclose(model(x), h, rtol=1e-12)
    assert all(layer.bias is None for layer in MLP((3, 5, 2)).layers)


@pytest.mark.parametrize("widths", [(3, 2), (3, 0, 2), ()])
def test_widths_that_make_no_network(widths: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as error:
        MLP(widths)
    assert str(error.value) == f"widths {list(widths)} do not make an MLP: give at least three positive numbers"


def test_unknown_activation() -> None:
    with pytest.raises(UserError, match="unknown activation 'mish': choose one of identity, leaky_relu"):
        MLP((2, 3, 4), "mish")


def test_the_table_is_not_empty() -> None:
    assert len(ACTIVATIONS) >= 8
    assert sum(a.inverse is not None for a in ACTIVATIONS.values()) == 3
    assert sum(a.homogeneous for a in ACTIVATIONS.values()) == 3


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_facts_about_activations(name: str) -> None:
    sigma = ACTIVATIONS[name]
    if sigma.inverse is not None:
        rounding = tolerances.summed(8, condition=4.0)  # of sinh, z coth z at z = 4
        assert torch.allclose(sigma.inverse(sigma(LINE)), LINE, rtol=rounding, atol=rounding)
        assert torch.allclose(sigma(sigma.inverse(LINE)), LINE, rtol=rounding, atol=rounding)
    assert torch.allclose(sigma(3 * LINE), 3 * sigma(LINE), rtol=tolerances.summed(4), atol=0) == sigma.homogeneous
