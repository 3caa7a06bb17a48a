"""Parameters to which a number is added before they meet units, 1 + gamma: their sites, and what moves with them."""

from collections.abc import Callable
from dataclasses import replace

import laws
import pytest
import tolerances
import torch
import torch.nn.functional as F
from detection.drift import drifts
from detection.nets import Case, Net, described, found, normal, weight
from torch import Tensor, nn
from torch.func import functional_call

from meta_teleport.equivariant.site_features import diagonal_site_features, site_features
from meta_teleport.optimizers.transport import (
    Law,
    as_bounds,
    as_gradients,
    as_squared_weights,
    as_squares,
    as_steps,
    as_weights,
)
from meta_teleport.params import Params
from meta_teleport.rules.rule import Observation
from meta_teleport.symmetry.gathered import Gathered
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.teleportation.moment_map import moment_map

ROWS = normal(5, 3)


def normed(scale, **parts: Tensor) -> Net:
    """A scale of normed units that ``b`` reads, computed from the parameter g."""
    parts = {"g": weight(4), **parts}
    return Net(
        lambda net, x: net.b(F.rms_norm(net.a(x), (4,)) * scale(net, x)), a=nn.Linear(3, 4), b=nn.Linear(4, 2), **parts
    )


def twice(first, second) -> Net:
    """Two scales, computed from one parameter, of the same units."""
    return Net(
        lambda net, x: net.b(F.rms_norm(net.a(x), (4,)) * first(net) + F.rms_norm(net.c(x), (4,)) * second(net)),
        a=nn.Linear(3, 4), c=nn.Linear(3, 4), b=nn.Linear(4, 2), g=weight(4),
    )  # fmt: skip


class Shaken(Net):
    """A net with a number that is zero until somebody raises it."""

    rate: float

    def __init__(self) -> None:
        super().__init__(
            lambda net, x: net.b(F.rms_norm(net.a(x), (4,)) * (net.g + (net.rate if net.training else 0.0))),
            a=nn.Linear(3, 4), b=nn.Linear(4, 2), g=weight(4),
        )  # fmt: skip
        self.rate = 0.0


SITES = ("scale 4: g > b.weight",)
SHIFTED = {
    Case("one_plus", lambda: normed(lambda net, x: 1 + net.g), ROWS, SITES): 1.0,
    Case("one_minus", lambda: normed(lambda net, x: 1 - net.g), ROWS, SITES): -1.0,
    Case("minus_six", lambda: normed(lambda net, x: torch.sub(net.g, 3, alpha=2)), ROWS, SITES): -6.0,
    Case("three_minus_twice", lambda: normed(lambda net, x: torch.sub(torch.tensor(3.0), net.g, alpha=2)), ROWS,
         SITES): -1.5,
    Case("three_plus_twice", lambda: normed(lambda net, x: torch.add(torch.tensor(3.0), net.g, alpha=2)), ROWS,
         SITES): 1.5,
    Case("reversed", lambda: normed(lambda net, x: torch.rsub(net.g, 3, alpha=2)), ROWS, SITES): -1.5,
    Case("half_of_it", lambda: normed(lambda net, x: 0.5 * (1 + net.g)), ROWS, SITES): 1.0,
    Case(
        "layer_norm",
        lambda: Net(lambda net, x: net.b(F.layer_norm(net.a(x), (4,), net.g + 1, net.c)),
                    a=nn.Linear(3, 4), b=nn.Linear(4, 2), g=weight(4), c=weight(4)),
        ROWS,
        ("scale 4: g c > b.weight",),
    ): 1.0,
    Case(
        "a_weight",
        lambda: Net(lambda net, x: (x @ (net.g - 0.5)) @ net.u, g=weight(3, 4), u=weight(4, 2)), ROWS, ("gl 4: g > u",)
    ): -0.5,
    Case(
        "gain",
        lambda: Net(lambda net, x: net.b(F.linear(x, torch._weight_norm(net.v, 1 + net.g, 0)).relu()),
                    v=weight(4, 3), g=weight(4, 1), b=nn.Linear(4, 2)),
        ROWS,
        ("scale 4: g > b.weight", "permute 4: g v > b.weight"),
    ): 1.0,
    Case(
        "on_both_sides",
        lambda: Net(lambda net, x: net.b(net.a(x) * (1 + net.g)), a=nn.Linear(3, 4), b=nn.Linear(4, 2), g=weight(4)),
        ROWS,
        ("scale 4: a.weight a.bias > g", "scale 4: g > b.weight", "permute 4: a.weight a.bias g > b.weight"),
    ): 1.0,
}  # fmt: skip

STANDING = [
    Case("a_multiple_plus_one", lambda: normed(lambda net, x: 1 + 2 * net.g), ROWS),
    Case(
        "one_plus_a_normalized",
        lambda: Net(lambda net, x: net.b(F.linear(x, 1 + torch._weight_norm(net.v, net.g, 0)).relu()),
                    v=weight(4, 3), g=weight(4, 1), b=nn.Linear(4, 2)),
        ROWS,
    ),
    Case("with_and_without", lambda: twice(lambda net: net.g, lambda net: 1 + net.g), ROWS),
    Case("two_numbers", lambda: twice(lambda net: 2 + net.g, lambda net: 1 + net.g), ROWS),
    Case("numbers_of_their_own", lambda: normed(lambda net, x: net.g + torch.tensor([1.0, 2, 3, 4])), ROWS),
    Case("the_size_of_a_batch", lambda: normed(lambda net, x: net.g + x.shape[0]), ROWS),
    Case("a_rate", Shaken, ROWS),
    Case("written_in_place", lambda: normed(lambda net, x: net.g.clone().add_(1)), ROWS),
    Case(
        "returned",
        lambda: Net(lambda net, x: (net.b(F.rms_norm(net.a(x), (4,)) * (1 + net.g)), 1 + net.g),
                    a=nn.Linear(3, 4), b=nn.Linear(4, 2), g=weight(4)),
        ROWS,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", SHIFTED, ids=str)
def test_sites_are_those_counted_by_hand(case: Case) -> None:
    sites = found(case).sites
    assert sorted(map(described, sites)) == case.expected
    for site in sites:
        shifts = {view.name: view.shift for view in site.producers + site.consumers if view.shift}
        assert shifts == ({"g": SHIFTED[case]} if site.group.has_algebra else {})
    assert max(drifts(case.model(), case.inputs(), sites, 3).values()) <= 1e-10
    forgetful = tuple(site.linear for site in sites if site.group.has_algebra)
    assert min(drifts(case.model(), case.inputs(), forgetful, 3).values()) > 1e-4


@pytest.mark.parametrize("case", STANDING, ids=str)
def test_what_is_no_parameter_plus_a_number_stands_still(case: Case) -> None:
    sites = found(case).sites
    assert not any("g" in site.parameters for site in sites), list(map(described, sites))


PLACES = torch.tensor([[5, 0], [1, 3]])
VIEWS = [
    View.along("w", (2, 3), 1),
    View("w", 2, (2, 2), (1,), part=(1, 1, 2)),
    Gathered("w", 2, (2, 3), (1,), (0,), places=PLACES),
]


@pytest.mark.parametrize("view", VIEWS, ids=("whole", "part", "gathered"))
def test_a_view_with_a_shift_shows_the_sum_and_gives_the_parameter_back(view: View) -> None:
    w, seen = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)), replace(view, shift=1.5)
    assert torch.equal(seen.matrix(w), view.matrix(w + 1.5))
    moved = seen.restore(2 * seen.matrix(w), w)
    inside = view.restore(torch.ones_like(view.matrix(w)), torch.zeros_like(w)).bool()
    assert torch.allclose(moved, torch.where(inside, 2 * w + 1.5, w), rtol=1e-6, atol=1e-6)
    assert torch.equal(seen.linear.matrix(w), view.matrix(w)) and seen != view == seen.linear


class Moved:
    """A model with sites of shifted parameters, and an element of each of their groups."""

    def __init__(self, case: Case) -> None:
        self.model, self.inputs = case.model().double(), ROWS().double()
        self.sites = tuple(site for site in found(case).sites if site.group.has_algebra)
        generator = torch.Generator().manual_seed(2)
        self.elements = [site.group.sample(generator=generator, dtype=torch.float64) for site in self.sites]
        self.params = {name: p.detach() for name, p in self.model.named_parameters()}

    def gradients(self, params: Params) -> Params:
        def loss(params: Params) -> Tensor:
            return functional_call(self.model, params, (self.inputs,)).square().sum()

        return torch.func.grad(loss)(params)

    def move(self, law: Law, vectors: Params) -> Params:
        for site, g in zip(self.sites, self.elements, strict=True):
            vectors = law(site, vectors, g)
        return vectors

    def pairs(self) -> dict[Law, tuple[Params, Params]]:
        """What the laws are of, here and where the element leads."""
        there = self.move(as_weights, self.params)
        slopes = self.gradients(self.params), self.gradients(there)
        others = {name: p + 1 for name, p in self.params.items()}
        ends = ((others, self.params), (self.move(as_weights, others), there))
        steps = tuple({name: b[name] - a[name] for name in a} for b, a in ends)
        pairs = {as_gradients: slopes, as_steps: steps}
        if all(site.group.is_diagonal for site in self.sites):
            pairs |= {as_squares: mapped(torch.square, *slopes), as_squared_weights: mapped(torch.square, *steps)}
            pairs |= {as_bounds: mapped(torch.abs, *slopes)}
        return pairs


def mapped(function: Callable[[Tensor], Tensor], *ends: Params) -> tuple[Params, ...]:
    return tuple({name: function(t) for name, t in end.items()} for end in ends)


def with_the_shift(law: Law) -> Law:
    """The law as if what it moves were weights, with shifts."""

    def wrong(site: Site, vectors: Params, g: Tensor) -> Params:
        shifts = dict.fromkeys(vectors, 0.0) | {v.name: v.shift for v in site.producers + site.consumers}
        moved = law(site, {name: v + shifts[name] for name, v in vectors.items()}, g)
        return {name: v - shifts[name] for name, v in moved.items()}

    return wrong


MOVED = [case for case in SHIFTED if case.name in ("layer_norm", "a_weight", "on_both_sides")]


@pytest.mark.parametrize("case", MOVED, ids=str)
def test_the_shift_moves_no_gradients_and_no_differences(case: Case) -> None:
    moved = Moved(case)
    tolerance = tolerances.solved(12) * float(laws.spread(*(g.unsqueeze(0) for g in moved.elements)).max()) ** 2
    for law, (here, there) in moved.pairs().items():
        laws.memory_moves(here, there, lambda v, law=law: moved.move(law, v), tolerance)
        laws.must_fail(laws.memory_moves, here, there, lambda v, law=law: moved.move(with_the_shift(law), v), 1e-3)


@pytest.mark.parametrize("case", MOVED, ids=str)
def test_what_a_site_measures_is_what_it_measures_of_the_sum_without_a_shift(case: Case) -> None:
    moved = Moved(case)
    params, slopes = mapped(lambda t: t.unsqueeze(0), moved.params, moved.gradients(moved.params))
    summed = {**params, "g": params["g"] + SHIFTED[case]}

    def measured(site: Site, params: Params) -> Tensor:
        seen = Observation(params, slopes, torch.zeros(1), torch.zeros(1))
        features = (diagonal_site_features if site.group.is_diagonal else site_features)(site, seen)
        (moment,) = moment_map(Symmetry((site,)), params, slopes)
        return torch.cat([t.flatten() for t in (*features.grams, features.sizes, features.product, moment)])

    for site in moved.sites:
        assert torch.allclose(measured(site, params), measured(site.linear, summed), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(measured(site, params), measured(site.linear, params), rtol=1e-3, atol=1e-3)
