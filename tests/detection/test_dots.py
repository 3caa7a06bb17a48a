"""Inner products of two rows of units: recommenders, towers, cosines; and what breaks them."""

import pytest
import torch
import torch.nn.functional as F
from detection.drift import drifts
from detection.nets import Case, Net, described, found, normal, weight
from torch import Tensor, nn

from meta_teleport.symmetry.groups import PositiveScaling
from meta_teleport.symmetry.site import Site


def indices() -> tuple[Tensor, Tensor]:
    return torch.tensor([0, 3, 2, 1]), torch.tensor([1, 1, 4, 2])


def rows() -> tuple[Tensor, Tensor]:
    return normal(5, 3)(), normal(5, 3)().flip(0) * 2 + 1


def tables(function, **more: nn.Module) -> Net:
    """Users and items."""
    return Net(function, u=nn.Embedding(5, 4), v=nn.Embedding(6, 4), **more)


def layers(function, width: int = 4) -> Net:
    return Net(function, a=nn.Linear(3, width), b=nn.Linear(3, width))


def read(function, names: str = "abc") -> Net:
    """The layers of these names, of which c reads the others."""
    return Net(function, **{name: nn.Linear(4, 2) if name == "c" else nn.Linear(3, 4) for name in names})


def towers(same: bool) -> Net:
    """Two towers of two layers, or one for both sides."""

    def function(net: Net, x: Tensor, y: Tensor) -> Tensor:
        return (net.b(net.a(x).relu()) * (net.b(net.a(y).relu()) if same else net.d(net.c(y).relu()))).sum(1)

    own = {} if same else {"c": nn.Linear(3, 5), "d": nn.Linear(5, 4)}
    return Net(function, a=nn.Linear(3, 6), b=nn.Linear(6, 4), **own)


def clip(net: Net, x: Tensor, y: Tensor) -> Tensor:
    a, b = (h / h.norm(dim=-1, keepdim=True) for h in (net.a(x), net.b(y)))
    return a @ b.T


def hidden(*layers: tuple[str, str, int]) -> tuple[str, ...]:
    """Scalings and permutations of hidden layers: name, reader, width."""
    return tuple(f"{g} {k}: {a}.weight {a}.bias > {b}.weight" for a, b, k in layers for g in ("scale", "permute"))


PAIR = "a.weight a.bias > b.weight b.bias"
CASES = [
    Case("factorization", lambda: tables(lambda net, i, j: (net.u(i) * net.v(j)).sum(-1) + net.b(i)[:, 0],
                                         b=nn.Embedding(5, 1)), indices, ("gl 4: u.weight > v.weight",)),
    Case("mean", lambda: tables(lambda net, i, j: (net.u(i) * net.v(j)).mean(1)), indices,
         ("gl 4: u.weight > v.weight",)),
    Case("einsum", lambda: tables(lambda net, i, j: torch.einsum("bd,bd->b", net.u(i), net.v(j))), indices,
         ("gl 4: u.weight > v.weight",)),
    Case("towers", lambda: towers(False), rows,
         ("gl 4: b.weight b.bias > d.weight d.bias", *hidden(("a", "b", 6), ("c", "d", 5)))),
    Case("heads", lambda: layers(lambda net, x, y: (net.a(x).view(5, 2, 4) * net.b(y).view(5, 2, 4)).sum(-1), 8), rows,
         (f"gl 4x2: {PAIR}",)),
    Case("relu", lambda: layers(lambda net, x, y: (net.a(x).relu() * net.b(y)).sum(1)), rows, (f"scale 4: {PAIR}",)),
    Case("tanh", lambda: layers(lambda net, x, y: (net.a(x).tanh() * net.b(y)).sum(1)), rows, (f"flip 4: {PAIR}",)),
    Case("clip", lambda: layers(clip), rows, (f"flip 4: {PAIR}",), "are measured together in linalg_vector_norm"),
    Case("cosines", lambda: layers(lambda net, x, y: F.normalize(net.a(x), dim=-1) @ F.normalize(net.b(y), dim=-1).T),
         rows, (f"flip 4: {PAIR}",), "are measured together in linalg_vector_norm"),
    Case("measured_in_part",
         lambda: read(lambda net, x, y: net.c((h := net.a(x)) / h[:, :2].norm(dim=-1, keepdim=True)), "ac"), rows,
         tuple(f"{group} 2: a.weight a.bias > c.weight" for group in ("gl", "flip", "permute")),
         "are measured together in linalg_vector_norm"),
    Case("one_tower", lambda: towers(True), rows, hidden(("a", "b", 6)), "meet their own inverse in mul"),
    Case("square", lambda: layers(lambda net, x, y: (net.a(x) * net.a(x)).sum(1)), rows, (), "meet their own inverse"),
    Case("sigmoid", lambda: layers(lambda net, x, y: (net.a(x).sigmoid() * net.b(y)).sum(1)), rows, (), "sigmoid"),
    Case("all_at_once", lambda: layers(lambda net, x, y: (net.a(x) * net.b(y)).sum()), rows, (),
         "reduced over one another"),
    Case("read_elsewhere", lambda: read(lambda net, x, y: (lambda p: p.sum(1) + net.c(p)[:, 0])(net.a(x) * net.b(y))),
         rows, (), "held still as the gate"),
    Case("written_over", lambda: layers(lambda net, x, y: (lambda p: (p.add_(1.0), p.sum(1))[1])(net.a(x) * net.b(y))),
         rows, (), "held still as the gate"),
    Case("product_in_place",
         lambda: read(lambda net, x, y: (lambda u: u.mul_(net.b(y)).sum(1) + net.c(u)[:, 0])(net.a(x))), rows, (),
         "held still as the gate"),
    Case("over_places", lambda: read(lambda net, x, y: net.c((net.a(x) * net.b(y)).sum(0))), rows,
         ("permute 4: a.weight a.bias b.weight b.bias > c.weight", "scale 4: b.weight b.bias > c.weight"),
         "held still as the gate"),
    Case("distance", lambda: layers(lambda net, x, y: (net.a(x) - net.b(y)).square().sum(-1)), rows, (), "square"),
    Case("weighted", lambda: Net(lambda net, x, y: (net.a(x) * net.b(y) * net.w).sum(-1), a=nn.Linear(3, 4),
                                 b=nn.Linear(3, 4), w=weight(4)),
         rows,
         ("scale 4: b.weight b.bias > w",), "reduced over one another"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sites_are_those_counted_by_hand(case: Case) -> None:
    assert sorted(map(described, found(case).sites)) == case.expected
    assert any(case.refusal in refusal.reason for refusal in found(case).refusals) or not case.refusal


@pytest.mark.parametrize("case", [case for case in CASES if case.sites], ids=str)
def test_no_site_moves_the_outputs(case: Case) -> None:
    worst = drifts(case.model(), case.inputs(), found(case).sites, trials=5)
    assert max(worst.values()) <= 1e-10, worst


def test_scalings_would_move_cosines() -> None:
    case = next(case for case in CASES if case.name == "cosines")
    (signs,) = found(case).sites
    scaled = Site("a", PositiveScaling(4), signs.producers, signs.consumers)
    assert drifts(case.model(), case.inputs(), (scaled,))["a"] > 1e-3
