"""Hooks read the second moments that a pass by hand gives."""

import gc
from collections.abc import Callable
from copy import deepcopy
from weakref import ref

import laws
import pytest
import torch
from network_cases import HEADS, LINEAR, RELU, Network
from torch import Tensor, nn

from meta_teleport.detection.detect import find_symmetries
from meta_teleport.optimizers.activation_hooks import GramHooks
from meta_teleport.symmetry.gathered import Gathered
from meta_teleport.symmetry.groups import GL, PositiveScaling
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View


def moments(h: Tensor) -> Tensor:
    """Of units ``(n, k)``, ``(1, k, k)``."""
    return (h.mT @ h / len(h)).unsqueeze(0)


def by_hand(network: Network, model: nn.Module, x: Tensor) -> list[Tensor]:
    if network is RELU:
        return [moments(model[:2](x)).diagonal(dim1=-2, dim2=-1)]
    if network is LINEAR:
        return [moments(model[0](x))]
    q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in model.in_proj(x).chunk(3, dim=-1))
    mixed = (q @ k.mT / 3**0.5).softmax(-1) @ v
    return [torch.stack([moments(t[:, head].flatten(0, 1))[0] for head in range(2)]).unsqueeze(0) for t in (k, mixed)]


@pytest.mark.parametrize("network", [RELU, LINEAR, HEADS], ids=str)
def test_it_reads_what_consumers_see(network: Network) -> None:
    model, (x, _) = network.build(), network.batch()
    hooks = GramHooks(model, network.symmetry)
    assert hooks.grams() == (None,) * len(network.symmetry.sites)
    model(network.batch(1)[0])
    model(x)
    read, expected = hooks.grams(), [t.detach() for t in by_hand(network, network.build(), x)]
    for site, gram, wanted in zip(network.symmetry.sites, read, expected, strict=True):
        assert gram is not None and gram.shape == (1, *site.group.algebra_shape)
        laws.assert_close(gram, wanted, 1e-12)
        laws.must_fail(laws.assert_close, gram, 2 * wanted, 1e-6)


class Mixed(nn.Module):
    """Convolutions, a flatten in front of a linear layer, and a linear map that is no module's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2)
        self.third, self.last = nn.Linear(16, 5), nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)[-1] @ self.last.mT

    def features(self, x: Tensor) -> list[Tensor]:
        h1 = self.first(x).relu()
        h2 = self.second(h1).relu()
        return [h1, h2, self.third(h2.flatten(1)).relu()]


def test_it_reads_channels_and_what_is_flattened() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mixed().double()
    x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    symmetry = find_symmetries(model, x).continuous
    assert [site.group.k for site in symmetry.sites] == [4, 4, 5], str(symmetry)
    hooks = GramHooks(model, symmetry)
    model(x)
    grams = hooks.grams()
    for gram, h in zip(grams, model.features(x)[:2], strict=False):
        assert gram is not None
        laws.assert_close(gram, h.square().mean((0, 2, 3)).detach().unsqueeze(0), 1e-12)
    assert grams[2] is None


def test_it_averages_over_consumers_and_blocks_in_linear_maps() -> None:
    model = nn.Sequential(nn.Linear(3, 4, dtype=torch.float64), nn.Linear(4, 2, dtype=torch.float64))
    views = (View.along("0.weight", (4, 3), 0),), (View("1.weight", 2, (2, 2), units=(1,), part=(1, 2, 2)),)
    hooks = GramHooks(model, Symmetry((Site("part", GL(2), *views),)))
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model(x)
    (gram,) = hooks.grams()
    assert gram is not None
    laws.assert_close(gram, moments(model[0](x)[:, 2:]).detach(), 1e-12)
    twice = (View.along("1.weight", (2, 4), 1),) * 2
    more = GramHooks(model, Symmetry((Site("twice", PositiveScaling(4), (), twice),)))
    model(x)
    (gram,) = more.grams()
    assert gram is not None
    laws.assert_close(gram, model[0](x).square().mean(0).detach().unsqueeze(0), 1e-12)


def test_which_passes_count() -> None:
    model, x = RELU.build(), RELU.batch()[0]
    hooks = GramHooks(model, RELU.symmetry)

    def read(call: Callable[[], object]) -> bool:
        hooks.clear()
        call()
        return hooks.grams() != (None,)

    def within(on: bool) -> None:
        with hooks.reading(on):
            model(x)

    assert read(lambda: model(x)) and not read(lambda: within(False))
    assert not read(lambda: torch.no_grad()(model)(x))
    assert not read(lambda: deepcopy(model)(x))
    model.eval()
    assert not read(lambda: model(x)) and read(lambda: within(True))
    model.train()
    hooks.close()
    assert not read(lambda: model(x))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_hooks_do_not_keep_their_reader() -> None:
    model, x = RELU.build(), RELU.batch()[0]
    hooks = GramHooks(model, RELU.symmetry)
    model(x)
    alive = ref(hooks)
    del hooks
    gc.collect()
    assert alive() is None
    model(x)


class Turned(nn.Module):
    """Two linear maps with the units between them in reverse order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu().flip(-1))


def test_units_in_an_order_that_is_spelled_out_are_not_read() -> None:
    model, x = Turned().double(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (site,) = find_symmetries(model, x).continuous.sites
    hooks = GramHooks(model, Symmetry((site,)))
    model(x)
    assert any(isinstance(view, Gathered) for view in site.producers + site.consumers)
    assert hooks.grams() == (None,)
