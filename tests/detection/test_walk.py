"""What the walk alone must not be wrong about: zeros, gates, places, doubled views, returned and odd parameters."""

import sys

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from detection.drift import drifts
from detection.nets import Case, Net, chain, described, found, normal, weight
from torch import Tensor, nn

from meta_teleport.detection.check import verify
from meta_teleport.detection.detect import find_symmetries
from meta_teleport.detection.sites import Sites
from meta_teleport.detection.walk import Walk
from meta_teleport.errors import UserError
from meta_teleport.operations.units import Units
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tracing.trace import Trace, given, trace

Linear, Conv = nn.Linear, nn.Conv2d
ROWS, SEQUENCE, IMAGE = normal(5, 3), normal(2, 5, 3), normal(2, 3, 6, 6)
PAIR = ("scale 4: a.weight a.bias > b.weight", "permute 4: a.weight a.bias > b.weight")


def image(function, **parts) -> Net:
    return Net(function, a=Conv(3, 4, 3), b=Conv(4, 2, 1), **parts)


def rows(function, width: int = 4, **parts) -> Net:
    return Net(function, a=Linear(3, 4), b=Linear(width, 2), **parts)


def padded(h: Tensor, number: float = 0.0) -> Tensor:
    """Two more units."""
    return F.pad(h, (0, 2), value=number)


ZEROS = [
    Case("bias_on_padding", lambda: image(lambda n, x: n.b((F.pad(n.a(x), (1, 1, 1, 1)) + n.p).relu()),
                                          p=weight(4, 1, 1)), IMAGE,
         ("scale 4: a.weight a.bias p > b.weight", "permute 4: a.weight a.bias p > b.weight")),
    Case("one_on_padding", lambda: image(lambda n, x: n.b(F.pad(n.a(x), (1, 1, 1, 1)) + 1.0)), IMAGE, PAIR[1:]),
    Case("function_of_padding", lambda: image(lambda n, x: n.b(F.softplus(F.pad(n.a(x), (1, 1, 1, 1))))), IMAGE,
         PAIR[1:]),
    Case("padding_of_ones", lambda: image(lambda n, x: n.b(F.pad(n.a(x), (1, 1, 1, 1), value=1.0))), IMAGE, PAIR[1:]),
    Case("bias_on_padded_units", lambda: rows(lambda n, x: n.b((padded(n.a(x)) + n.p).relu()), 6, p=weight(6)), ROWS,
         ("scale 4: a.weight a.bias p > b.weight", "permute 4: a.weight a.bias p > b.weight",
          "scale 2: p > b.weight", "permute 2: p > b.weight")),
    Case("bias_on_padded_places", lambda: rows(lambda n, x: n.b((F.pad(n.a(x).flatten(1), (4, 0)) + n.p).relu()), 24,
                                               p=weight(24)), SEQUENCE,
         ("scale 4: a.weight a.bias p > b.weight", "permute 4: a.weight a.bias p > b.weight",
          "scale 4: p > b.weight", "permute 4: p > b.weight")),
    Case("one_on_padded_units", lambda: Net(lambda n, x: n.b(padded(n.a(x)) + 1.0) + n.b(n.c(x)),
                                            a=Linear(3, 4), b=Linear(6, 2), c=Linear(3, 6)), ROWS,
         ("permute 4: a.weight a.bias c.weight c.bias > b.weight",)),
    Case("function_of_padded_units", lambda: Net(lambda n, x: n.b(padded(n.a(x)).cos() + n.c(x)),
                                                 a=Linear(3, 4), b=Linear(6, 2), c=Linear(3, 6)), ROWS,
         ("permute 4: a.weight a.bias c.weight c.bias > b.weight",)),
    Case("zeros_beside", lambda: rows(lambda n, x: n.b(torch.cat([h := n.a(x).relu(), torch.zeros_like(h)], -1)), 8),
         ROWS, PAIR),
    Case("zeros_written_over", lambda: rows(lambda n, x: n.b(n.a(x).relu() + written(x))), ROWS, (),
         "added to what does not move"),
    Case("first_state", lambda: Net(lambda n, x: n.b((n.a(x) + n.h((n.a(x) + n.h(x.new_zeros(5, 4))).relu())).relu()),
                                    a=Linear(3, 4), h=Linear(4, 4), b=Linear(4, 2)), ROWS,
         ("scale 4: a.weight a.bias h.weight h.bias > h.weight b.weight",
          "permute 4: a.weight a.bias h.weight h.bias > h.weight b.weight")),
]  # fmt: skip


def written(x: Tensor) -> Tensor:
    """Zeros, of which a view is taken before they are written over."""
    zeros = x.new_zeros(5, 4)
    view = zeros.view(5, 4)
    zeros.add_(1.0)
    return view


GATES = [
    Case("gate_of_padded_units", lambda: rows(lambda n, x: n.b(padded(n.a(x)) * n.c(x)), 6, c=Linear(3, 6)), ROWS,
         ("permute 4: a.weight a.bias c.weight c.bias > b.weight", "scale 4: c.weight c.bias > b.weight")),
    Case("gate_of_ones", lambda: rows(lambda n, x: n.b(padded(n.a(x), 1.0) * n.c(x)), 6, c=Linear(3, 6)), ROWS,
         ("permute 4: a.weight a.bias c.weight c.bias > b.weight", "scale 6: c.weight c.bias > b.weight")),
    Case("scale_of_padded_units", lambda: rows(lambda n, x: n.b(padded(n.a(x)) * n.p), 6, p=weight(6)), ROWS,
         ("scale 4: a.weight a.bias > p", "permute 4: a.weight a.bias p > b.weight", "scale 4: p > b.weight")),
    Case("scale_of_ones", lambda: rows(lambda n, x: n.b(padded(n.a(x), 1.0) * n.p), 6, p=weight(6)), ROWS,
         ("permute 4: a.weight a.bias p > b.weight", "scale 6: p > b.weight")),
    Case("scaled_twice", lambda: rows(lambda n, x: n.b((q := n.a(x)) * n.g @ q.mT), 5, g=weight(4)), SEQUENCE,
         ("scale 4: a.weight a.bias > g g", "permute 4: a.weight a.bias g > ")),
    Case("scaled_back", lambda: rows(lambda n, x: n.b((q := n.a(x)) + q * n.g), g=weight(4)), ROWS,
         ("scale 4: a.weight a.bias > b.weight", "permute 4: a.weight a.bias g > b.weight")),
]  # fmt: skip

PLACES = [
    Case("rolled_over_places_and_units", lambda: rows(lambda n, x: n.b(n.a(x).flatten(1).roll(1, -1)), 20), SEQUENCE,
         ("gl 3: a.weight a.bias > b.weight", "gl 1: a.weight a.bias > b.weight")),
    Case("rolled_by_all_units", lambda: rows(lambda n, x: n.b(n.a(x).flatten(1).roll(4, -1)), 20), SEQUENCE,
         ("gl 4: a.weight a.bias > b.weight",)),
    Case("turned_round", lambda: rows(lambda n, x: n.b(n.a(x).flatten(1).flip(-1)), 20), SEQUENCE,
         ("gl 4: a.weight a.bias > b.weight",)),
    Case("cut_out_of_places", lambda: rows(lambda n, x: n.b(n.a(x).flatten(1)[:, 1:]), 19), SEQUENCE,
         ("gl 3: a.weight a.bias > b.weight", "gl 1: a.weight a.bias > b.weight")),
    Case("cut_at_a_place", lambda: rows(lambda n, x: n.b(n.a(x).flatten(1)[:, 4:]), 16), SEQUENCE,
         ("gl 4: a.weight a.bias > b.weight",)),
]  # fmt: skip

ODD = [
    Case("bias_without_axes", lambda: rows(lambda n, x: n.b(n.a(x) + n.p), p=torch.randn(())), ROWS,
         ("gl 1: a.weight a.bias p > b.weight",)),
    Case("bias_of_all", lambda: Net(lambda n, x: n.b(F.linear(x, n.w, n.p)), w=weight(4, 3), p=torch.randn(()),
                                    b=Linear(4, 2)), ROWS,
         ("gl 1: w p > b.weight",)),
    Case("returned", lambda: rows(lambda n, x: [n.b(n.a(x).relu()), n.a.weight]), ROWS, (),
         "which linear in 'a' (Linear) and the outputs of the model share"),
    Case("a_part_returned", lambda: rows(lambda n, x: [n.b(n.a(x)), n.a.bias[:2]]), ROWS,
         (), "which linear in 'a' (Linear) and the outputs of the model share"),
    Case("filled_in", lambda: rows(lambda n, x: n.b(n.a(x) + n.p) * torch.zeros(2).fill_(n.p), p=torch.randn(())), ROWS,
         (), "depend on 'p', which add in 'model' (Net) and fill in 'model' (Net) share"),
    Case("vector", lambda: Net(lambda n, x: F.linear(n.a(x).relu(), n.w), a=Linear(3, 4), w=weight(4)), ROWS,
         ("scale 4: a.weight a.bias > w", "permute 4: a.weight a.bias > w")),
    Case("vector_on_the_right", lambda: Net(lambda n, x: n.a(x) @ n.w, a=Linear(3, 4), w=weight(4)), SEQUENCE,
         ("gl 4: a.weight a.bias > w",)),
    Case("unit_of_a_vector", lambda: rows(lambda n, x: n.b(F.linear(n.a(x), n.w)[..., None]), 1, w=weight(4)), ROWS,
         ("gl 4: a.weight a.bias > w", "gl 1: w > b.weight")),
    Case("width_0", lambda: chain(Linear(3, 4), nn.ReLU(), Linear(4, 5), Empty(5), nn.ReLU(), Linear(5, 2)), ROWS,
         ("scale 4: 0.weight 0.bias > 2.weight", "permute 4: 0.weight 0.bias > 2.weight",
          "scale 5: 2.weight 2.bias 3.up.bias > 5.weight", "permute 5: 2.weight 2.bias 3.up.bias > 5.weight")),
    Case("adaptive_softmax", lambda: Net(lambda n, x: n.s.log_prob(n.b(n.a(x).relu())), a=Linear(3, 4), b=Linear(4, 8),
                                         s=adaptive()), ROWS,
         ("scale 4: a.weight a.bias > b.weight", "permute 4: a.weight a.bias > b.weight",
          "gl 8: b.weight b.bias > s.head.weight s.tail.0.0.weight", "gl 2: s.tail.0.0.weight > s.tail.0.1.weight")),
]  # fmt: skip


class Empty(nn.Module):
    """A bottleneck without units beside a stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        with pytest.warns(UserWarning, match="zero-element"):
            self.down, self.up = Linear(width, 0), Linear(0, width)
        nn.init.normal_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.up(self.down(h))


def adaptive() -> nn.Module:
    with pytest.warns(UserWarning, match="zero-element"):
        return nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10])


CASES = ZEROS + GATES + PLACES + ODD


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sites_are_those_counted_by_hand(case: Case) -> None:
    assert sorted(map(described, found(case).sites)) == case.expected
    assert any(case.refusal in refusal.reason for refusal in found(case).refusals)


@pytest.mark.parametrize("case", [case for case in CASES if case.sites], ids=str)
def test_no_site_moves_the_outputs_and_the_check_keeps_all(case: Case) -> None:
    worst = drifts(case.model(), case.inputs(), found(case).sites, trials=5)
    assert max(worst.values()) <= 1e-10, worst
    assert sorted(map(described, find_symmetries(case.model(), case.inputs()).sites)) == case.expected


@pytest.mark.parametrize("odd", [torch.arange(3), torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.cfloat)])
def test_a_parameter_that_cannot_move_is_barred_alone(odd: Tensor) -> None:
    model = rows(lambda n, x: n.b(n.a(x).relu()) * n.odd.abs().sum() if n.odd.is_complex() else n.b(n.a(x).relu()))
    model.odd = nn.Parameter(odd, requires_grad=odd.is_complex())
    symmetry = find_symmetries(model, ROWS())
    assert sorted(map(described, symmetry.sites)) == Case("", Linear, ROWS, PAIR).expected
    assert verify(model, symmetry, ROWS()) < 1e-10
    assert Symmetry.manual(model, {"h": ("scaling", ["a.weight", "a.bias"], ["b.weight"])}).sites
    with pytest.raises(UserError, match=f"'odd', which is {str(odd.dtype).removeprefix('torch.')}"):
        Symmetry.manual(model, {"h": ("scaling", [("odd", 0)], [("odd", 0)])})
    only = nn.Module()
    only.odd = nn.Parameter(torch.ones(3, dtype=torch.cfloat))
    with pytest.raises(UserError, match="no trainable parameters in float32 or float64"):
        find_symmetries(only, ROWS())


class Keeps(nn.Module):
    """Keeps what it has computed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Linear(3, 4), Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(x).relu()
        return self.b(self.last)


def pruned() -> nn.Module:
    model = chain(Linear(3, 4), nn.ReLU(), Linear(4, 5), nn.ReLU(), Linear(5, 2))
    torch.nn.utils.prune.random_unstructured(model[0], "weight", amount=0.3)
    return model


def weight_normed() -> nn.Module:
    model = chain(Linear(3, 4), nn.ReLU(), Linear(4, 5), nn.ReLU(), Linear(5, 2))
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(model[0])
    return model


def test_what_a_model_keeps_is_an_output() -> None:
    model = Keeps()
    model(ROWS())  # what it has kept cannot be copied
    symmetry = find_symmetries(model, ROWS())
    assert not symmetry.sites
    assert any("are outputs of the model" in reason for names, reason in symmetry.refusals if "a.weight" in names)


@pytest.mark.parametrize("build", [pruned, weight_normed])
def test_weights_that_hooks_make(build) -> None:
    model = build()
    model(ROWS())
    symmetry = find_symmetries(model, ROWS())
    assert {"scale", "permute"} <= {described(site).split()[0] for site in symmetry.sites}
    assert max(drifts(copied(model), ROWS(), symmetry.sites).values()) <= 1e-10


def copied(model: nn.Module) -> nn.Module:
    """Without what was computed."""
    for module in model.modules():
        for name in [name for name, value in vars(module).items() if isinstance(value, Tensor)]:
            vars(module)[name] = vars(module)[name].detach()
    return model


def test_the_work_of_a_walk_grows_with_the_graph() -> None:
    """The calls of twice as many steps of a recurrent net are at most about twice as many."""
    counts = []
    for steps in (20, 40):
        model = Net(unrolled, i=Linear(3, 4), h=Linear(4, 4), o=Linear(4, 2))
        counts.append(calls(trace(model, given(model, torch.randn(2, steps, 3))), model))
    assert counts[1] < 2.2 * counts[0]


def calls(traced: Trace, model: nn.Module) -> int:
    """How many functions a walk and the reading of its sites call."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    sys.setprofile(note)
    try:
        units = Units()
        Walk(traced, units).run()
        sites = Sites(units, shapes).sites()
    finally:
        sys.setprofile(None)
    assert sorted(map(described, sites)) == [
        "permute 4: h.bias h.weight i.bias i.weight > h.weight o.weight",
        "scale 4: h.bias h.weight i.bias i.weight > h.weight o.weight",
    ]
    return count


def unrolled(net: Net, x: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[0], 4)
    for t in range(x.shape[1]):
        h = (net.i(x[:, t]) + net.h(h)).relu_()
    return net.o(h)
