"""The published teleports of image networks: which way they go, how far, and where they stop."""

import laws
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from waves import wave, waves

from experiments.lab.image_teleports import (
    MakeObjective,
    curvature_steps,
    gradient_steps,
    of_gradient_norm,
    of_sharpness,
)
from meta_teleport.models import MLP
from meta_teleport.params import Params
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.teleportation.curvature import kappa

WIDTHS = (6, 5, 4, 3)
COPIES, BATCH = 3, 12
X = wave(BATCH, 6)
Y = torch.arange(BATCH) % 3


def network() -> tuple[MLP, Params]:
    model = MLP(WIDTHS).double()
    copies = [waves(dict(model.named_parameters()), 2**0.5, seed) for seed in range(0, 10 * COPIES, 10)]
    return model, {name: torch.stack([copy[name] for copy in copies]) for name in copies[0]}


def loss_of(model: MLP, params: Params) -> Tensor:
    outputs = torch.func.functional_call(model, dict(params), (X,))
    return torch.stack([F.cross_entropy(single, Y) for single in outputs])


@pytest.mark.parametrize("direction", ["raise", "lower"])
@pytest.mark.parametrize("make", [of_gradient_norm, of_sharpness])
@pytest.mark.parametrize("action", ["pseudo_inverse", "scaling"])
def test_a_published_step_goes_up_or_down_its_objective_at_the_rate_of_the_slope(
    make: MakeObjective, direction: str, action: str
) -> None:
    """A step ``T = +-size * slope`` changes the objective by ``+-size |slope|^2``, and goes ``size |slope|`` far."""
    model, params = network()
    size, symmetry = 1e-6, mlp_symmetry(model, action, displacement=False)
    objective = make(symmetry, X)
    found = gradient_steps(make, size, direction, steps=1)(symmetry, params, lambda p: loss_of(model, p), X)
    with torch.enable_grad():
        leaves = [{name: p.detach().requires_grad_() for name, p in at.items()} for at in (params, found.params)]
        before, after = (objective(lambda p: loss_of(model, p), at).detach() for at in leaves)
    expected = {"raise": 1.0, "lower": -1.0}[direction] * found.size.square() / size
    assert bool((found.size > 0).all())
    laws.assert_close(after - before, expected, 1e-2)


@pytest.mark.parametrize("direction", ["raise", "lower"])
def test_a_published_step_of_curvature_goes_up_or_down_it(direction: str) -> None:
    """Along positive scalings the curves exp(t M) . w compose, so that kappa itself rises or falls."""
    model, params = network()
    symmetry, seed = mlp_symmetry(model, "scaling"), 4
    found = curvature_steps(["layers.0"], 1e-3, direction, seed)(symmetry, params, lambda p: loss_of(model, p), X)
    generator = torch.Generator().manual_seed(seed)
    shapes = [site.group.algebra_shape for site in symmetry.sites]
    algebra = [torch.rand(shape, generator=generator).double().expand(COPIES, *shape) for shape in shapes]
    algebra[1] = torch.zeros_like(algebra[1])
    rise = kappa(symmetry, algebra, None, found.params) - kappa(symmetry, algebra, None, params)
    assert bool((found.size > 0).all())
    assert bool(((rise > 0) if direction == "raise" else (rise < 0)).all())


def test_a_step_of_curvature_is_no_longer_than_its_limit() -> None:
    model, params = network()
    symmetry = mlp_symmetry(model, "scaling")
    sizes = [
        curvature_steps(["layers.0"], 1e-3, "raise", 4, limit)(symmetry, params, lambda p: loss_of(model, p), X).size
        for limit in (torch.inf, 1e-9)
    ]
    assert bool((sizes[0] > 1e-9).all())
    laws.assert_close(sizes[1], torch.full_like(sizes[1], 1e-9), 1e-12)


def test_a_copy_above_the_cap_stops() -> None:
    model, params = network()
    symmetry = mlp_symmetry(model, "scaling")
    with torch.enable_grad():
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        values = of_gradient_norm(symmetry, X)(lambda p: loss_of(model, p), leaves).detach()
    cap = float(values.median())
    found = gradient_steps(of_gradient_norm, 1e-3, cap=cap)(symmetry, params, lambda p: loss_of(model, p), X)
    assert ((found.size > 0) == (values <= cap)).all() and 0 < int((values > cap).sum()) < COPIES
