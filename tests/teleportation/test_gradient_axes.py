"""Teleports to the axes of the gradients, on a small decoder in float64."""

import copy
from dataclasses import replace
from typing import Any

import laws
import pytest
import torch
from network_cases import RELU, parameters
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam

import meta_teleport as mt
from meta_teleport.errors import UserError
from meta_teleport.models import Decoder
from meta_teleport.optimizers.teleported import TeleportedOptimizer
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View

WIDTH, HEADS, LAYERS = 8, 2, 2


def decoder(seed: int = 0) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoder(WIDTH, LAYERS, HEADS, vocabulary=11).double()


def rotations(values: str = "orthogonal") -> Symmetry:
    """The residual stream, and the values of every head."""
    inner = WIDTH // HEADS
    sites: dict[str, Any] = {}
    producers, consumers = [("embedding.weight", 1)], [("head.weight", 1)]
    for i in range(LAYERS):
        block = f"blocks.{i}"
        producers += [(f"{block}.out.weight", 0), (f"{block}.down.weight", 0)]
        consumers += [(f"{block}.{name}.weight", 1) for name in ("query", "key", "value", "up")]
        made = View(f"{block}.value.weight", 2, (HEADS, inner, WIDTH), units=(1,), blocks=(0,))
        read = View(f"{block}.out.weight", 2, (WIDTH, HEADS, inner), units=(2,), blocks=(1,))
        sites[f"{block}.values"] = (values, [made], [read])
    return Symmetry.manual(decoder(), {"stream": ("orthogonal", producers, consumers), **sites})


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(seed))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def second_moments(model: nn.Module, symmetry: Symmetry, batch: Tensor) -> list[Tensor]:
    """One per site, summed over parameters of trace one each, written out."""
    model.zero_grad()
    loss(model, batch).backward()
    found = []
    for site in symmetry.sites:
        total: Tensor | float = 0.0
        for view in (*site.producers, *site.consumers):
            g = view.matrix(model.get_parameter(view.name).grad)
            gram = torch.einsum("...ij,...kj->...ik", g, g)
            total = total + gram / torch.einsum("...ii->...", gram)[..., None, None]
        found.append(total)
    return found


def off_diagonal(matrix: Tensor) -> float:
    """The share of the norm beside the diagonal."""
    diagonal = torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))
    return float((matrix - diagonal).norm() / matrix.norm())


@pytest.mark.parametrize("values", ["orthogonal", "gl"])
def test_gradients_are_uncorrelated_there_and_largest_first(values: str) -> None:
    model, symmetry, batch = decoder(), rotations(values), tokens()
    before, outputs = second_moments(model, symmetry, batch), model(batch)
    mt.teleport(model, symmetry, "gradient_axes", loss=loss, batch=batch).write(model)
    after = second_moments(model, symmetry, batch)
    laws.assert_close(model(batch), outputs, 1e-13)
    for was, there in zip(before, after, strict=True):
        assert off_diagonal(there) < 1e-12 < 0.1 < off_diagonal(was)
        diagonal = there.diagonal(dim1=-2, dim2=-1)
        assert bool((diagonal.diff(dim=-1) <= 1e-12).all())


def trained(optimizer: Any, model: nn.Module, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss(model, tokens(step)).backward()
        optimizer.step()


def test_the_mean_follows_the_moving_network() -> None:
    """What is kept between teleports is what would be kept of a network that never moved, turned along."""
    decay, turned, symmetry = 0.8, decoder(), rotations()
    moved = TeleportedOptimizer(SGD(turned.parameters(), 0.1), turned, symmetry, mt.GradientAxes(decay), 3)
    trained(moved, turned, range(8))
    still, mean = decoder(), [torch.zeros(0)] * len(symmetry.sites)
    plain = SGD(still.parameters(), 0.1)
    for step in range(8):
        seen = second_moments(still, symmetry, tokens(step))
        mean = seen if step == 0 else [decay * m + (1 - decay) * s for m, s in zip(mean, seen, strict=True)]
        plain.step()
    assert [r.step for r in moved.teleports if r.accepted] == [3, 6]
    kept = moved._view.state_dict()["second"]  # type: ignore[index]
    for site, expected in zip(symmetry.sites, mean, strict=True):
        values = torch.linalg.eigvalsh(kept[site.name][0])
        laws.assert_close(values, torch.linalg.eigvalsh(expected), 1e-11)
    laws.assert_close(turned(tokens()), still(tokens()), 1e-11)  # SGD does not see rotations


def test_orthogonal_iteration_arrives_at_the_axes() -> None:
    model, symmetry = decoder(), rotations()
    base = SGD(model.parameters(), lr=0.0)
    optimizer = TeleportedOptimizer(base, model, symmetry, mt.GradientAxes(decay=0.0), 1)
    shares = []
    for step in range(200):  # the second batch is another one than the first teleport turned to
        shares.append(off_diagonal(second_moments(model, symmetry, tokens(1))[0]))
        optimizer.zero_grad()
        loss(model, tokens(min(step, 1))).backward()
        optimizer.step()
    assert shares[-1] < 0.1 * shares[1]


def test_a_resumed_training_goes_on_as_it_was() -> None:
    def begun(model: nn.Module) -> TeleportedOptimizer:
        return TeleportedOptimizer(Adam(model.parameters(), 0.01), model, rotations(), mt.GradientAxes(every=2), 3)

    model = decoder()
    optimizer = begun(model)
    trained(optimizer, model, range(5))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    trained(optimizer, model, range(5, 11))
    other = decoder(1)
    resumed = begun(other)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    trained(resumed, other, range(5, 11))
    laws.same_bits(parameters(other), parameters(model))
    assert [r.accepted for r in optimizer.teleports] == [True] * 3


def test_gradients_that_are_zero_or_not_finite_do_not_count() -> None:
    model, symmetry = decoder(), rotations()
    proposer = mt.GradientAxes().proposer(model, symmetry)
    expected = second_moments(model, symmetry, tokens())
    proposer.watch()
    kept = copy.deepcopy(proposer.state_dict()["second"])
    laws.assert_close(kept["stream"], expected[0].unsqueeze(0), 1e-13)
    model.get_parameter("head.weight").grad.fill_(torch.inf)  # type: ignore[union-attr]
    model.get_parameter("embedding.weight").grad.zero_()  # type: ignore[union-attr]
    proposer.watch()
    there = proposer.state_dict()["second"]["stream"]
    assert bool(there.isfinite().all())
    trace = float(there.diagonal(dim1=-2, dim2=-1).sum() / kept["stream"].diagonal(dim1=-2, dim2=-1).sum())
    views = 2 + 6 * LAYERS
    assert trace == pytest.approx(0.95 + 0.05 * (views - 2) / views, rel=1e-12)


def test_a_site_without_gradients_stays_until_it_has_some() -> None:
    model, symmetry = decoder(), rotations()
    proposer = mt.GradientAxes().proposer(model, symmetry)
    frozen = "blocks.1.values"
    params = {name: p.detach().unsqueeze(0) for name, p in model.named_parameters()}
    second_moments(model, symmetry, tokens())
    for name in ("value", "out"):
        model.get_parameter(f"blocks.1.{name}.weight").grad = None
    for seen in (False, True):
        proposer.watch()
        found = proposer.propose(symmetry, params, lambda p: pytest.fail("gradients are known"))
        proposer.accept()
        elements = {site.name: g for site, g in zip(symmetry.sites, found.elements, strict=True)}
        eye = torch.eye(WIDTH // HEADS, dtype=torch.float64)
        assert torch.equal(elements[frozen], eye.expand_as(elements[frozen])) is not seen
        assert off_diagonal(elements["blocks.0.values"]) > 0.1 or seen
        second_moments(model, symmetry, tokens())
    kept = proposer.state_dict()["second"][frozen]
    assert off_diagonal(kept) < 1e-12  # by its eigenvectors, as the first time anywhere


def test_gradients_do_not_see_what_is_added_to_a_parameter() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    made, read = View.along("0.weight", (4, 3), 0), View.along("1.weight", (2, 4), 1)
    plain = Symmetry.manual(model, {"units": ("gl", [made], [read])})
    shifted = Symmetry.manual(model, {"units": ("gl", [replace(made, shift=1.0)], [read])})
    model(torch.ones(5, 3, dtype=torch.float64)).square().sum().backward()
    found = []
    for symmetry in (plain, shifted):
        proposer = mt.GradientAxes().proposer(model, symmetry)
        proposer.watch()
        found.append(proposer.state_dict()["second"]["units"])
    assert torch.equal(*found)


def test_what_cannot_turn_is_refused() -> None:
    with pytest.raises(UserError, match="no site of the symmetry can be turned"):
        mt.teleport(RELU.build(), RELU.symmetry, "gradient_axes")
    with pytest.raises(UserError, match=r"decay=1\.0: give a number"):
        mt.GradientAxes(decay=1.0)
    with pytest.raises(UserError, match="every=0: give a whole number"):
        mt.GradientAxes(every=0)
    with pytest.raises(UserError, match="pass loss="):
        mt.teleport(decoder(), rotations(), "gradient_axes")
