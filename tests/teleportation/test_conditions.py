"""What a teleport refuses to start from, and what it does not accept; the model is bitwise what it was."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import network_cases
import pytest
import torch
from network_cases import LINEAR
from torch import Tensor, nn

import meta_teleport as mt
from meta_teleport.models import MLP
from meta_teleport.params import Params
from meta_teleport.symmetry.groups import GL, Orthogonal, Permutation, PositiveScaling
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.teleportation.acceptance import condition_number
from meta_teleport.teleportation.gauges import Gauge
from meta_teleport.teleportation.objectives import Loss

Prepare = Callable[[nn.Module], Any]
WITH_LOSS = {"loss": network_cases.loss, "batch": LINEAR.batch()}


def tensors(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in model.state_dict().values() if not tensor.is_meta]


def same(model: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(tensors(model), before, strict=True))


def site(group: GL | PositiveScaling | Permutation | Orthogonal, name: str = "0") -> Site:
    return replace(LINEAR.symmetry.sites[0], name=name, group=group)


def nan_after(evaluations: int) -> Callable[[Loss, Params], Tensor]:
    """An objective that is not a number from some evaluation on."""
    count = 0

    def objective(loss: Loss, params: Params) -> Tensor:
        nonlocal count
        count += 1
        total = sum(p.square().sum() for p in params.values())
        return total * (torch.nan if count > evaluations else 1.0)

    return objective


def nothing(model: nn.Module) -> None:
    pass


def freeze(model: nn.Module) -> None:
    model.requires_grad_(False)


def freeze_biases(model: nn.Module) -> None:
    model.get_parameter("0.bias").requires_grad_(False)


def spoil(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("1.bias")[0] = torch.inf


def mix(model: nn.Module) -> None:
    model.get_submodule("1").float()


ONE = LINEAR.symmetry
OTHER = Symmetry((replace(site(GL(4), "far"), producers=(View.along("9.weight", (4, 6), 0),)),))
SHUFFLED = Symmetry((site(Permutation(4)),))
DATA = mlp_symmetry(MLP((6, 5, 4)), "general_linear")
OBJECTIVE = "unknown objective 'speed': choose one of gradient_norm, sharpness, curvature, balanced, whitened, "
REFUSED: list[tuple[str, Prepare, Symmetry, dict[str, Any], str]] = [
    ("frozen", freeze, ONE, WITH_LOSS, "the model has no trainable parameters: set requires_grad"),
    ("frozen site", freeze_biases, ONE, WITH_LOSS, "every site has a frozen parameter: set requires_grad"),
    ("half", lambda m: m.half(), ONE, WITH_LOSS, r"is float16: keep the parameters in float32 \(model.float\(\)\)"),
    ("meta", lambda m: m.to("meta"), ONE, WITH_LOSS, r"has no numbers yet \(meta device\): initialize the model first"),
    ("mixed", mix, ONE, WITH_LOSS, "are cpu float32, cpu float64: bring them to one device and one precision"),
    ("not finite", spoil, ONE, WITH_LOSS, "parameter '1.bias' is not finite: go back to a checkpoint"),
    ("no sites", nothing, Symmetry(()), WITH_LOSS, "no site with a Lie algebra, so there is nothing to search"),
    ("permutations", nothing, SHUFFLED, WITH_LOSS, "no site with a Lie algebra, so there is nothing to search"),
    ("other model", nothing, OTHER, WITH_LOSS, "site 'far' moves '9.weight', which is not a parameter of the model"),
    ("name", nothing, ONE, {"objective": "speed", **WITH_LOSS}, OBJECTIVE),
    ("way", nothing, ONE, {"direction": "up", **WITH_LOSS}, "unknown direction 'up': choose one of raise, lower"),
    ("steps", nothing, ONE, {"steps": 0, **WITH_LOSS}, "steps=0: give a whole number, at least 1"),
    ("part", nothing, ONE, {"steps": 2.5, **WITH_LOSS}, "steps=2.5: give a whole number, at least 1"),
    ("size", nothing, ONE, {"size": torch.inf, **WITH_LOSS}, "size=inf: give a positive number"),
    ("word", nothing, ONE, {"size": "a", **WITH_LOSS}, "size='a': give a positive number"),
    ("number", nothing, ONE, {"objective": 3, **WITH_LOSS}, "unknown objective 3: choose one of gradient_norm"),
    ("class", nothing, ONE, {"objective": mt.Sharpness, **WITH_LOSS}, "objective the class Sharpness: choose one of"),
    ("tolerance", nothing, ONE, {"tolerance": -1.0, **WITH_LOSS}, "tolerance=-1.0: give a number that is not negative"),
    ("generator", nothing, ONE, {"objective": "random"}, "objective 'random' draws elements: pass generator="),
    ("no loss", nothing, ONE, {}, "the objective evaluates the loss: pass loss="),
    ("no loss for it", nothing, ONE, {"objective": "sharpness"}, "the objective evaluates the loss: pass loss="),
    ("nan", nothing, ONE, {"objective": nan_after(0), **WITH_LOSS}, "the objective is nan at the model's parameters"),
    (
        "inf",
        nothing,
        ONE,
        {"loss": lambda m, b: m(b[0]).sum() / 0, "batch": LINEAR.batch()},
        "the loss is -?inf at the",
    ),
    ("shape", nothing, ONE, {"objective": lambda f, p: p["0.weight"], **WITH_LOSS}, r"gave shape \(1, 4, 6\), not one"),
    ("type", nothing, ONE, {"objective": lambda f, p: 3.0, **WITH_LOSS}, "the objective gave float, not one number"),
    (
        "constant",
        nothing,
        ONE,
        {"objective": lambda f, p: f(p).detach(), **WITH_LOSS},
        "cannot be differentiated by the",
    ),
]


@pytest.mark.parametrize(
    ("prepare", "symmetry", "options", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_cannot_start(prepare: Prepare, symmetry: Symmetry, options: dict[str, Any], message: str) -> None:
    model = LINEAR.build()
    prepare(model)
    before, state = [t.clone() for t in tensors(model)], torch.get_rng_state()
    with pytest.raises(mt.UserError, match=message) as raised:
        mt.teleport(model, symmetry, **options)
    assert "\n" not in str(raised.value)
    assert same(model, before) and torch.equal(torch.get_rng_state(), state)


def test_sites_that_depend_on_data_are_refused() -> None:
    with pytest.raises(
        mt.UserError, match=r"site 'layers\.0' acts by GeneralLinearSite, which is not the same linear map"
    ):
        mt.teleport(MLP((6, 5, 4)), DATA, loss=network_cases.loss, batch=LINEAR.batch())


def penalised(model: nn.Module, batch: network_cases.Batch) -> Tensor:
    """A loss that the group does not leave alone."""
    return network_cases.loss(model, batch) + sum(p.square().sum() for p in model.parameters())


def constant(element: Tensor) -> Gauge:
    return Gauge("fixed", lambda site, params: element.double())


def stretched(condition: float) -> Gauge:
    return constant(torch.diag(torch.tensor([1.0, 1.0, 1.0, condition], dtype=torch.float64))[None])


def relative_error(group: GL | PositiveScaling, g: Tensor) -> float:
    """Of a weight vector that is moved and moved back, the worst of its entries, in multiples of eps."""
    v = torch.linspace(1, 2, group.k, dtype=g.dtype).unsqueeze(-1)
    back = group.apply(group.inverse(g), group.apply(g, v))
    return float(((back - v) / v).abs().max() / torch.finfo(g.dtype).eps)


def test_the_condition_number_bounds_what_rounding_does(generator: torch.Generator) -> None:
    """Uneven scalings lose no digits; the same spread along other axes loses as many as its number says."""
    spread = torch.tensor([1.0, 1.0, 1.0, 1e6])
    axes = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    turned = axes @ torch.diag(spread) @ axes.mT
    assert condition_number(PositiveScaling(4), spread) == 1.0 and relative_error(PositiveScaling(4), spread) <= 2
    assert 1e6 <= condition_number(GL(4), turned) <= 4e6
    assert 1e3 < relative_error(GL(4), turned) <= 10 * condition_number(GL(4), turned)
    blocks = torch.stack([torch.eye(4), turned])
    assert condition_number(GL(4, (2,)), blocks) == pytest.approx(condition_number(GL(4), turned), rel=1e-6)
    for group, element in ((PositiveScaling(4), spread), (GL(4), turned)):
        assert condition_number(group, 0 * element) == condition_number(group, element * torch.nan) == torch.inf


ZERO = torch.zeros(1, 4, 4)
NO_RANK = "gauge 'principal_axes' has no element at site '0': its weights have no full rank"
REJECTED: list[tuple[str, Prepare, dict[str, Any], str]] = [
    (
        "drift",
        nothing,
        {"loss": penalised, "batch": LINEAR.batch(), "size": 0.3},
        "the loss moved by .*, and the tolerance",
    ),
    ("empty factor", lambda m: nn.init.zeros_(m[1].weight), {"objective": "principal_axes"}, NO_RANK),
    ("singular", nothing, {"objective": constant(ZERO)}, "the element at site '0' is singular"),
    ("not finite", nothing, {"objective": constant(ZERO + torch.inf)}, "the element at site '0' is not finite"),
    ("ill", nothing, {"objective": stretched(1e14)}, "site '0' is ill-conditioned: 1.0e.14, and the limit is 4.5e.11"),
    ("ill with loss", nothing, {"objective": stretched(1e17), **WITH_LOSS}, "ill-conditioned: 1.0e.17, .* is 4.5e.15"),
    (
        "no way",
        nothing,
        {"objective": lambda f, p: p["1.bias"].square().sum(), **WITH_LOSS},
        "no step of the search could",
    ),
    (
        "nan on the way",
        nothing,
        {"objective": nan_after(1), **WITH_LOSS},
        "no step of the search could raise the objective",
    ),
    (
        "overflow",
        nothing,
        {"objective": "random", "size": 2e3, "generator": torch.Generator().manual_seed(0)},
        "the element at site '0' is not finite",
    ),
]


@pytest.mark.parametrize(("prepare", "options", "message"), [r[1:] for r in REJECTED], ids=[r[0] for r in REJECTED])
def test_what_is_not_accepted(prepare: Prepare, options: dict[str, Any], message: str) -> None:
    model = LINEAR.build()
    prepare(model)
    before = [t.clone() for t in tensors(model)]
    found = mt.teleport(model, ONE, **options)
    assert not found.accepted
    assert re.search(message, found.reason) and "\n" not in found.reason
    assert same(model, before)
    assert all(torch.equal(found.params[name], p) for name, p in model.named_parameters())
    assert all(torch.equal(g, torch.eye(4, dtype=torch.float64)) for g in found.elements)
    found.write(model)
    assert same(model, before)


def test_a_wider_tolerance_accepts_the_drift() -> None:
    found = mt.teleport(LINEAR.build(), ONE, loss=penalised, batch=LINEAR.batch(), size=0.3, tolerance=1e9)
    assert found.accepted and found.drift > 1e-4
    assert mt.teleport(LINEAR.build(), ONE, stretched(1e6)).accepted


def test_a_loss_that_is_not_a_number_where_the_teleport_ends_is_drift() -> None:
    model = LINEAR.build()
    start = model.get_parameter("0.weight").detach().clone()

    def loss(model: nn.Sequential, batch: network_cases.Batch) -> Tensor:
        value = network_cases.loss(model, batch)
        return value if torch.equal(model[0].weight, start) else value * torch.nan

    found = mt.teleport(model, ONE, "balanced", loss=loss, batch=LINEAR.batch())
    assert not found.accepted and found.reason == "the loss moved by nan, and the tolerance is 1.0e-04"


@pytest.mark.parametrize("objective", ["balanced", constant(ZERO)], ids=["accepted", "not accepted"])
def test_what_was_found_stays_when_the_model_goes_on(objective: str | Gauge) -> None:
    model = LINEAR.build()
    found = mt.teleport(model, ONE, objective)
    kept = {name: p.clone() for name, p in found.params.items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert all(torch.equal(found.params[name], p) for name, p in kept.items())
