"""Hidden units of recurrent networks: modules, cells in a loop, and loops written by hand; and what breaks them."""

import pytest
import torch
import torch.nn.functional as F
from detection.drift import drifts
from detection.nets import Case, Net, described, found, normal, weight
from torch import Tensor, nn

from meta_teleport.symmetry.groups import Permutation, PositiveScaling, SignFlips
from meta_teleport.symmetry.site import Site

SEQUENCE, ONE = normal(2, 5, 3), normal(2, 1, 3)
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def cell(kinds: str, k: int, of: str, readers: str, name: str = "r", made: str = " ".join(WEIGHTS)) -> tuple[str, ...]:
    """The sites of k hidden units of one layer and direction (``of``: ``_l0``), which the ``readers`` read."""
    sides = (" ".join(f"{name}.{m}{of}" for m in side.split()) for side in (made, "weight_hh"))
    line = "{} > {} {}".format(*sides, readers)
    return tuple(f"{kind} {k}: {line}" for kind in kinds.split())


def module(cls: type[nn.Module], **options) -> Net:
    """A recurrent module on three inputs, four hidden units, and a reader of all states of the last layer."""
    module = cls(3, 4, batch_first=True, **options)
    width = (options.get("proj_size") or 4) * (2 if options.get("bidirectional") else 1)
    return Net(lambda net, x: net.o(net.r(x)[0]), r=module, o=nn.Linear(width, 2))


def both_ends(lower: str, upper: str) -> tuple[str, ...]:
    """Two layers in two directions; both directions of the second read both of the first."""
    above = "r.weight_ih_l1 r.weight_ih_l1_reverse"
    forward, backward = (
        cell(lower, 4, f"_l0{end}", above) + cell(upper, 4, f"_l1{end}", "o.weight") for end in ("", "_reverse")
    )
    return forward + backward


def looped(cls: type[nn.Module]) -> Net:
    """A cell, step by step, from its own first state."""

    def function(net: Net, x: Tensor) -> Tensor:
        state, seen = None, []
        for row in x.unbind(1):
            state = net.r(row, state)
            seen.append(state[0] if isinstance(state, tuple) else state)
        return net.o(torch.stack(seen, 1))

    return Net(function, r=cls(3, 4), o=nn.Linear(4, 2))


def lstm_by_hand(net: Net, x: Tensor) -> Tensor:
    h = c = torch.zeros(len(x), 4, dtype=x.dtype)
    for row in x.unbind(1):
        i, f, g, o = (net.i(row) + net.h(h)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return net.o(h)


def gru_by_hand(net: Net, x: Tensor) -> Tensor:
    h = x.new_zeros(len(x), 4)
    for row in x.unbind(1):
        (r, z, n), (s, y, m) = net.i(row).chunk(3, -1), net.h(h).chunk(3, -1)
        r, z = (r + s).sigmoid(), (z + y).sigmoid()
        h = (1 - z) * (n + r * m).tanh() + z * h
    return net.o(h)


def side_by_side(activation):
    """``h' = activation(W [x, h])``."""

    def function(net: Net, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 4, dtype=x.dtype)
        for row in x.unbind(1):
            h = activation(net.h(torch.cat([row, h], -1)))
        return net.o(h)

    return lambda: Net(function, h=nn.Linear(7, 4), o=nn.Linear(4, 2))


def by_hand(function, gates: int) -> Net:
    return Net(function, i=nn.Linear(3, 4 * gates), h=nn.Linear(4, 4 * gates), o=nn.Linear(4, 2))


def translator(net: Net, x: Tensor) -> Tensor:
    """The decoder begins where the encoder ends."""
    return net.o(net.d(x, net.e(x)[1])[0])


def learned_start(net: Net, x: Tensor) -> Tensor:
    return net.o(net.r(x, net.s.expand(1, len(x), 4).contiguous())[0])


BOTH, SCALED = "flip permute", "scale permute"
HAND = "i.weight i.bias h.weight h.bias > h.weight o.weight"

CASES = [
    Case("lstm", lambda: module(nn.LSTM), SEQUENCE, cell(BOTH, 4, "_l0", "o.weight"), "gates that are not positively"),
    Case("gru", lambda: module(nn.GRU), SEQUENCE, cell(BOTH, 4, "_l0", "o.weight"), "gates that are not positively"),
    Case("rnn", lambda: module(nn.RNN), SEQUENCE, cell(BOTH, 4, "_l0", "o.weight")),
    Case("relu", lambda: module(nn.RNN, nonlinearity="relu"), SEQUENCE, cell(SCALED, 4, "_l0", "o.weight")),
    Case("no_bias", lambda: module(nn.GRU, bias=False), SEQUENCE,
         cell(BOTH, 4, "_l0", "o.weight", made="weight_ih weight_hh")),
    Case("deep_lstm", lambda: module(nn.LSTM, num_layers=2, bidirectional=True), SEQUENCE, both_ends(BOTH, BOTH)),
    Case("deep_relu", lambda: module(nn.RNN, num_layers=2, bidirectional=True, nonlinearity="relu"), SEQUENCE,
         both_ends(SCALED, SCALED)),
    Case("dropout", lambda: module(nn.GRU, num_layers=2, bidirectional=True, dropout=0.5), SEQUENCE,
         both_ends("flip", BOTH)),
    Case("projected", lambda: module(nn.LSTM, proj_size=2), SEQUENCE,
         ("gl 2: r.weight_hr_l0 > r.weight_hh_l0 o.weight",
          *(f"{kind} 4: {' '.join(f'r.{w}_l0' for w in WEIGHTS)} > r.weight_hr_l0" for kind in BOTH.split()))),
    Case("unbatched", lambda: module(nn.GRU), normal(5, 3), cell(BOTH, 4, "_l0", "o.weight")),
    Case("table", lambda: Net(lambda net, x: net.o(net.r(net.t(x))[0]), t=nn.Embedding(7, 3), r=nn.LSTM(3, 4),
                              o=nn.Linear(4, 2)),
         lambda: torch.tensor([[0, 3, 6, 1], [2, 2, 5, 4]]),
         (*cell(BOTH, 4, "_l0", "o.weight"), "gl 3: t.weight > r.weight_ih_l0")),
    Case("last_state", lambda: Net(lambda net, x: net.o(net.r(x)[1][1][0]), r=nn.LSTM(3, 4), o=nn.Linear(4, 2)),
         SEQUENCE, cell(BOTH, 4, "_l0", "o.weight")),
    Case("encoder_and_decoder",
         lambda: Net(translator, e=nn.LSTM(3, 4), d=nn.LSTM(3, 4), o=nn.Linear(4, 2)),
         SEQUENCE,
         tuple(
             f"{kind} 4: {' '.join(f'{n}.{w}_l0' for n in 'ed' for w in WEIGHTS)} > "
             "e.weight_hh_l0 d.weight_hh_l0 o.weight"
             for kind in BOTH.split()
         )),
    Case("learned_start",
         lambda: Net(learned_start, r=nn.GRU(3, 4, batch_first=True), s=weight(1, 1, 4), o=nn.Linear(4, 2)),
         SEQUENCE, tuple(line.replace(":", ": s") for line in cell(BOTH, 4, "_l0", "o.weight"))),
    *(
        Case(cls.__name__, lambda cls=cls: looped(cls), SEQUENCE, cell(BOTH, 4, "", "o.weight"))
        for cls in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    ),
    Case("one_step_of_a_cell", lambda: looped(nn.GRUCell), ONE, cell(BOTH, 4, "", "o.weight")),
    Case("lstm_by_hand", lambda: by_hand(lstm_by_hand, 4), SEQUENCE, tuple(f"{k} 4: {HAND}" for k in BOTH.split())),
    Case("gru_by_hand", lambda: by_hand(gru_by_hand, 3), SEQUENCE, tuple(f"{k} 4: {HAND}" for k in BOTH.split())),
    Case("side_by_side", side_by_side(torch.tanh), SEQUENCE,
         tuple(f"{kind} 4: h.weight h.bias > h.weight o.weight" for kind in BOTH.split())),
    Case("side_by_side_relu", side_by_side(torch.relu), SEQUENCE,
         tuple(f"{kind} 4: h.weight h.bias > h.weight o.weight" for kind in SCALED.split())),
]  # fmt: skip

BROKEN = [
    Case("states_returned", lambda: nn.RNN(3, 4, nonlinearity="relu"), SEQUENCE, (), "are outputs of the model"),
    Case("start_from_inputs", lambda: Net(lambda net, x, s: net.o(net.r(x, s)[0]), r=nn.GRU(3, 4), o=nn.Linear(4, 2)),
         lambda: (SEQUENCE(), torch.ones(1, 5, 4)), (), "gates that are not positively homogeneous in gru"),
    Case("relu_from_inputs",
         lambda: Net(lambda net, x, s: net.o(net.r(x, s)[0]), r=nn.RNN(3, 4, nonlinearity="relu"), o=nn.Linear(4, 2)),
         lambda: (SEQUENCE(), torch.ones(1, 5, 4)), (), "meet what does not move in rnn_relu in 'r' (RNN)"),
    Case("relu_of_the_states", lambda: Net(lambda net, x: net.o(net.r(x)[0].relu()), r=nn.GRU(3, 4), o=nn.Linear(4, 2)),
         SEQUENCE, cell("permute", 4, "_l0", "o.weight"), "gates that are not positively homogeneous in gru"),
    Case("weights_by_hand",
         lambda: Net(lambda net, x: torch.gru(x, x.new_zeros(1, 5, 4), [net.a * 0.5, net.b], False, 1, 0.0, True, False,
                                              False)[0] @ net.o, a=weight(12, 3), b=weight(12, 4), o=weight(4, 2)),
         SEQUENCE, ("flip 4: a b > b o", "permute 4: a b > b o")),
    Case("weights_dropped",
         lambda: Net(lambda net, x: torch.gru(x, x.new_zeros(1, 5, 4), [net.a, F.dropout(net.b, 0.5)], False, 1, 0.0,
                                              True, False, False)[0] @ net.o, a=weight(12, 3), b=weight(12, 4),
                     o=weight(4, 2)),
         SEQUENCE, (), "is used by gru in 'model' (Net), on which no group acts"),
    Case("one_step_by_hand", lambda: by_hand(gru_by_hand, 3), ONE, tuple(f"{k} 4: {HAND}" for k in BOTH.split())),
    Case("one_step_side_by_side", side_by_side(torch.relu), ONE,
         tuple(f"{kind} 4: h.weight h.bias > h.weight o.weight" for kind in SCALED.split())),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES + BROKEN, ids=str)
def test_sites_are_those_counted_by_hand(case: Case) -> None:
    assert sorted(map(described, found(case).sites)) == case.expected
    assert any(case.refusal in refusal.reason for refusal in found(case).refusals)


@pytest.mark.parametrize("case", [case for case in CASES + BROKEN if case.sites], ids=str)
def test_no_site_moves_the_outputs(case: Case) -> None:
    worst = drifts(case.model(), case.inputs(), found(case).sites, trials=5)
    assert max(worst.values()) <= 1e-10, worst


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_scalings_of_hidden_units_would_move_the_outputs(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    signs = next(site for site in found(case).sites if isinstance(site.group, SignFlips))
    scaled = Site("r", PositiveScaling(4), signs.producers, signs.consumers)
    assert drifts(case.model(), case.inputs(), (scaled,))["r"] > 1e-3


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_signs_of_all_gates_would_move_the_outputs(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    exchanges = next(site for site in found(case).sites if isinstance(site.group, Permutation))
    every = Site("r", SignFlips(4), exchanges.producers, exchanges.consumers)
    assert drifts(case.model(), case.inputs(), (every,))["r"] > 1e-3


def test_longer_sequences_and_larger_batches_stay_too() -> None:
    for case in CASES:
        if case.inputs is SEQUENCE or case.inputs is ONE:
            worst = drifts(case.model(), normal(3, 9, 3)(), found(case).sites, trials=1, alone=False)
            assert worst["all"] <= 1e-10, (case.name, worst)
