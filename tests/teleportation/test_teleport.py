"""Teleports of a model of one's own, and random elements."""

from dataclasses import replace
from functools import partial
from typing import Any

import laws
import network_cases
import pytest
import torch
from network_cases import HEADS, LINEAR, NETWORKS, RELU, Network
from torch import Tensor, nn

import meta_teleport as mt
from meta_teleport.models import MLP
from meta_teleport.params import Params
from meta_teleport.symmetry.groups import Permutation, PositiveScaling
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.teleportation.binding import bind
from meta_teleport.teleportation.gauges import Gauge, balanced, principal_axes
from meta_teleport.teleportation.objectives import Loss, Sharpness, gradient_norm


def largest_weight(loss: Loss, params: Params) -> Tensor:
    """A smooth stand-in for an objective of the user's own that does not look at the loss."""
    return torch.stack([p.pow(4).flatten(1).sum(1) for p in params.values()]).sum(0)


def second_derivatives(loss: Loss, params: Params) -> Tensor:
    """The gradient norm as a function that the search does not know."""
    return gradient_norm(loss, params)


FEW = Sharpness(directions=2, scales=(0.1, 0.5))
OBJECTIVES = ["gradient_norm", "curvature", FEW, largest_weight, second_derivatives]


def value_of(objective: Any, network: Network, model: nn.Module, params: dict[str, Tensor]) -> float:
    """The objective at the parameters, computed anew."""
    bound = bind(model, network_cases.loss, network.batch())
    leaves = {name: p.detach().clone().unsqueeze(0).requires_grad_() for name, p in params.items()}
    return float((gradient_norm if objective == "gradient_norm" else objective)(bound, leaves).detach())


def singles(params: dict[str, Tensor]) -> Params:
    return {name: p.detach().unsqueeze(0) for name, p in params.items()}


@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: getattr(o, "__name__", str(o)[:13]))
@pytest.mark.parametrize(("direction", "sign"), [("raise", 1), ("lower", -1)])
def test_a_search_improves_its_objective_and_keeps_the_loss(
    network: Network, objective: Any, direction: Any, sign: int
) -> None:
    model = network.build()
    before = network_cases.parameters(model)
    options = {"direction": direction, "steps": 4, "size": 0.05, "generator": torch.Generator().manual_seed(0)}
    found = mt.teleport(model, network.symmetry, objective, loss=network_cases.loss, batch=network.batch(), **options)
    assert found.accepted and found.reason == "" and found.seconds > 0
    assert sign * found.after > sign * found.before and found.drift < 1e-12
    if objective != "curvature":
        assert found.before == pytest.approx(value_of(objective, network, model, before), rel=1e-10)
        assert found.after == pytest.approx(value_of(objective, network, model, found.params), rel=1e-8)
    laws.params_close(singles(network.symmetry.act(before, found.elements)), singles(found.params), 1e-10)
    laws.must_fail(laws.params_close, singles(before), singles(found.params), 1e-4)
    laws.params_close(singles(network_cases.parameters(model)), singles(before), 0.0)
    found.write(model)
    laws.params_close(singles(network_cases.parameters(model)), singles(found.params), 0.0)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_the_cost_of_a_search_in_losses(network: Network) -> None:
    """Two gradients and two losses for the gradient norm, one objective per step and at the start for a function."""
    calls = 0

    def loss(model: nn.Module, batch: network_cases.Batch) -> Tensor:
        nonlocal calls
        calls += 1
        return network_cases.loss(model, batch)

    for objective, expected in (("gradient_norm", 2 + 2), (second_derivatives, 10 + 1 + 2)):
        calls = 0
        mt.teleport(network.build(), network.symmetry, objective, loss=loss, batch=network.batch(), steps=10)
        assert calls == expected


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_a_search_with_steps_too_long_shortens_them(network: Network) -> None:
    model = network.build()
    found = mt.teleport(
        model, network.symmetry, loss=network_cases.loss, batch=network.batch(), direction="lower", size=50.0, steps=25
    )
    assert found.after < found.before and found.drift < 1e-10


def deep() -> tuple[MLP, Symmetry]:
    """Three hidden layers, each of which shares its weights with the next."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MLP((5, 6, 7, 8, 3), "relu", bias=True).double()
    return model, mlp_symmetry(model, "scaling")


@pytest.mark.parametrize("steps", [1, 60])
def test_gauges_are_swept_until_every_site_is_balanced(steps: int) -> None:
    model, symmetry = deep()
    found = mt.teleport(model, symmetry, "balanced", steps=steps)
    assert found.accepted and found.before != found.before and found.drift != found.drift
    distances = [float((balanced(site, singles(found.params)) - 1).abs().max()) for site in symmetry.sites]
    assert (max(distances) < 1e-6) == (steps > 1)
    original = network_cases.parameters(model)
    laws.params_close(singles(symmetry.act(original, found.elements)), singles(found.params), 1e-10)


@pytest.mark.parametrize("network", [LINEAR, HEADS], ids=str)
@pytest.mark.parametrize(
    "objective",
    ["balanced", "whitened", "principal_axes", Gauge("uneven", partial(principal_axes, exponent=0.75, scale=2.0))],
    ids=lambda o: o if isinstance(o, str) else o.name,
)
def test_gauges_need_no_loss_and_measure_the_drift_if_there_is_one(network: Network, objective: str | Gauge) -> None:
    model = network.build()
    found = mt.teleport(model, network.symmetry, objective)
    measured = mt.teleport(model, network.symmetry, objective, loss=network_cases.loss, batch=network.batch())
    assert found.accepted and measured.accepted and measured.drift < 1e-12 and found.drift != found.drift
    laws.params_close(singles(found.params), singles(measured.params), 0.0)
    assert not all(torch.equal(p, found.params[name]) for name, p in model.named_parameters())
    found.write(model)
    again = mt.teleport(model, network.symmetry, objective)
    for g, site in zip(again.elements, network.symmetry.sites, strict=True):
        assert torch.allclose(g, site.group.identity(dtype=g.dtype), atol=1e-9)


def test_random_elements_have_the_size_that_was_asked(generator: torch.Generator) -> None:
    model, symmetry = deep()
    found = [mt.teleport(model, symmetry, "random", size=size, generator=generator) for size in (0.3, 0.3, 1.2)]
    sizes = [sum(g.log().square().sum() for g in t.elements).sqrt().item() for t in found]
    assert sizes == pytest.approx([0.3, 0.3, 1.2], rel=1e-12)
    assert not torch.equal(found[0].elements[0], found[1].elements[0])
    same = [
        mt.teleport(model, symmetry, "random", generator=torch.Generator().manual_seed(3)).elements[0] for _ in range(2)
    ]
    assert torch.equal(*same)


def test_permutations_and_sites_with_frozen_parameters_stay() -> None:
    model, symmetry = deep()
    shuffled = Site("shuffle", Permutation(6), symmetry.sites[0].producers, symmetry.sites[0].consumers)
    model.get_parameter("layers.0.bias").requires_grad_(False)
    found = mt.teleport(model, replace(symmetry, sites=(shuffled, *symmetry.sites)), "balanced")
    assert len(found.elements) == 3 and "layers.0.bias" not in found.params
    assert [bool((g == 1).all()) for g in found.elements] == [True, False, False]
    before = model.get_parameter("layers.0.weight").detach().clone()
    found.write(model)
    assert torch.equal(model.get_parameter("layers.0.weight"), before)


class Noisy(nn.Module):
    """Batch norm and dropout between two layers: a model with a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 4)
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.relu(self.first(self.norm(x)))))

    symmetry = Symmetry(
        (
            Site(
                "first",
                PositiveScaling(5),
                (View.along("first.weight", (5, 6), 0), View.along("first.bias", (5,), 0)),
                (View.along("last.weight", (4, 5), 1),),
            ),
        )
    )


def named_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (model(batch["x"]) - batch["y"]).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("objective", ["gradient_norm", second_derivatives, FEW])
def test_models_in_training_with_a_state_of_their_own(objective: Any, dtype: torch.dtype, device: str) -> None:
    model = Noisy().to(device, dtype)
    x, y = RELU.batch()
    batch = {"x": x.to(device, dtype), "y": y.to(device, dtype)}
    before, state = [t.clone() for t in model.state_dict().values()], torch.get_rng_state()
    with torch.no_grad():
        found = mt.teleport(model, Noisy.symmetry, objective, loss=named_loss, batch=batch)
    assert found.accepted and found.after > found.before and found.drift < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(g.dtype == dtype and g.device.type == device for g in (*found.elements, *found.params.values()))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("objective", ["gradient_norm", second_derivatives, "balanced", "random"])
def test_under_autocast_the_group_acts_in_full_precision(objective: Any, generator: torch.Generator) -> None:
    model, (x, y) = LINEAR.build().float(), LINEAR.batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mt.teleport(
            model,
            LINEAR.symmetry,
            objective,
            loss=network_cases.loss,
            batch=(x.float(), y.float()),
            generator=generator,
        )
    assert found.accepted and found.drift < 1e-6
    moved = LINEAR.symmetry.act(network_cases.parameters(model), found.elements)
    laws.params_close(singles(moved), singles(found.params), 1e-5)
