"""The MLP, the decoder, and the table of activations."""

import pytest
import tolerances
import torch

from meta_teleport.activations import ACTIVATIONS
from meta_teleport.errors import UserError
from meta_teleport.models import MLP, Decoder, decoder

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


def test_a_decoder_sees_the_past_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Decoder(16, 2, 2, vocabulary=7, feedforward="swiglu").double()
    tokens = torch.randint(7, (3, 9), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 5] = (tokens[:, 5] + 1) % 7
    before, after = model(tokens), model(changed)
    assert before.shape == (3, 9, 7)
    assert torch.equal(before[:, :5], after[:, :5])
    assert bool(((before - after)[:, 5:].abs().amax(-1) > 1e-6).all())


def test_attention_depends_on_distances() -> None:
    """Rotary positions: scores of two tokens are the same wherever both are moved to."""
    x = torch.randn(1, 2, 12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x[:, :, :1].expand(-1, -1, 12, -1)  # the same query and key everywhere
    turned = decoder._turned(x)
    scores = (turned @ turned.mT)[0, 0]
    for distance in range(12):
        assert float(scores.diagonal(distance).std(correction=0)) < 1e-6  # angles are of float32
    assert float(scores[0].std()) > 1e-2


def test_sizes_of_a_decoder_that_do_not_fit() -> None:
    for sizes in ({"width": 10, "heads": 2}, {"layers": 0}, {"vocabulary": 0}):
        with pytest.raises(UserError, match="make no decoder"):
            Decoder(**sizes)
