"""What is found holds wherever the model may go: in the other mode, at other sizes, on ways not taken. Each model here
has a site that is true on its example inputs alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detection.drift import drifts
from detection.nets import Net, chain, described, normal, weight
from torch import Tensor, nn

from meta_teleport.detection.check import verify
from meta_teleport.detection.detect import find_symmetries
from meta_teleport.tracing.trace import Examples

Linear = nn.Linear


@dataclass(frozen=True)
class Way:
    """A model, its example inputs, other inputs on which it goes another way, the sites that are true on all, and what
    is done to the model before it goes there."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Examples]
    others: Callable[[], Examples]
    sites: tuple[str, ...] = ()
    then: Callable[[nn.Module], Any] = lambda model: None

    def __str__(self) -> str:
        return self.name


def two(function: Callable[..., Any], **parts: nn.Module | Tensor) -> Net:
    return Net(function, **{"a": Linear(3, 4), "b": Linear(4, 2), **parts})


def hidden(kinds: str, *extra: str) -> tuple[str, ...]:
    """The sites of a hidden layer between a and b, with more parameters that make its units."""
    return tuple(f"{kind} 4: {' '.join(sorted(('a.bias', 'a.weight', *extra)))} > b.weight" for kind in kinds.split())


def sequence(length: int, batch: int = 2) -> Callable[[], Tensor]:
    return normal(batch, length, 3)


def looped(net: Net, x: Tensor) -> Tensor:
    h = x.new_zeros(len(x), 4)
    for step in x.unbind(1):
        h = (net.a(step) + net.h(h)).relu()
    return net.b(h)


def leaky_state(net: Net, x: Tensor) -> Tensor:
    """The last step reads the hidden layer in another way than the first."""
    h = net.a(x[:, 0]).relu()
    for step in x.unbind(1)[1:]:
        h = h.tanh() + net.a(step).relu()
    return net.b(h)


def relative(net: Net, x: Tensor) -> Tensor:
    """Music transformer's table: the last rows, as many as there are places."""
    return net.b((net.a(x) + net.p[len(net.p) - x.shape[1] :]).relu())


def alibi(net: Net, x: Tensor) -> Tensor:
    """A fixed slope per distance, and values that are mixed over places."""
    places = torch.arange(x.shape[1])
    weights = (-(places - places[:, None]).abs() * 0.5).softmax(-1).to(x.dtype)
    return net.b(weights @ net.a(x))


def sinusoids(net: Net, x: Tensor) -> Tensor:
    return net.b(net.a(x) + torch.sin(torch.arange(x.shape[1]).to(x.dtype))[:, None])


def rotated(net: Net, x: Tensor) -> Tensor:
    """Rotary: at place 0 alone nothing turns."""
    h = net.a(x)
    angle = torch.arange(x.shape[1]).to(x.dtype)[:, None]
    return net.b(h * angle.cos() + torch.cat((-h[..., 2:], h[..., :2]), -1) * angle.sin())


SIZES = [
    Way("positions", lambda: two(lambda net, x: net.b((net.a(x) + net.p[:, : x.shape[1]]).relu()), p=weight(1, 9, 4)),
        sequence(3), sequence(8), hidden("scale permute", "p")),
    Way("all_positions", lambda: two(lambda net, x: net.b((net.a(x) + net.p[: x.shape[1]]).relu()), p=weight(5, 4)),
        sequence(5), sequence(2), hidden("scale permute", "p")),
    Way("relative", lambda: two(relative, p=weight(9, 4)), sequence(3), sequence(8), hidden("scale permute", "p")),
    Way("offset", lambda: two(lambda net, x: net.b((net.a(x) + net.p[2 : 2 + x.shape[1]]).relu()), p=weight(12, 4)),
        sequence(3), sequence(8), hidden("scale permute", "p")),
    Way("prototypes", lambda: two(lambda net, x: net.b((net.a(x) * net.p[: len(x)]).relu()), p=weight(16, 4)),
        normal(3, 3), normal(11, 3),
        ("scale 4: p > b.weight", "scale 4: a.bias a.weight > p", "permute 4: a.bias a.weight p > b.weight")),
    Way("mixed_places", lambda: two(lambda net, x: net.b((net.p[: x.shape[1], : x.shape[1]] @ net.a(x)).relu()),
                                    p=weight(9, 9)), sequence(9), sequence(4),
        ("scale 1: p > b.weight", "gl 1: a.bias a.weight > p")),
    Way("hidden_places", lambda: Net(
        lambda net, x: net.q[:, : x.shape[1]] @ (net.p[: x.shape[1], : x.shape[1]] @ x).relu(),
        p=weight(7, 7), q=weight(2, 7)), sequence(7), sequence(4)),
    Way("unrolled", lambda: two(looped, h=Linear(4, 4)), sequence(1), sequence(4),
        tuple(f"{kind} 4: a.bias a.weight h.bias h.weight > b.weight h.weight" for kind in ("scale", "permute"))),
    Way("other_steps", lambda: two(leaky_state), sequence(1), sequence(4), hidden("permute")),
    Way("branch_by_size", lambda: two(lambda net, x: net.b(net.a(x).tanh() if x.shape[1] > 4 else net.a(x).relu())),
        sequence(4), sequence(5), hidden("permute")),
    Way("branch_by_batch", lambda: two(lambda net, x: net.b(net.a(x) if len(x) < 2 else F.softmax(net.a(x), 0))),
        normal(1, 3), normal(5, 3)),
    Way("alibi", lambda: two(alibi), sequence(1), sequence(6), hidden("gl")),
    Way("sinusoids", lambda: two(sinusoids), sequence(1), sequence(6)),
    Way("rotary", lambda: two(rotated), sequence(1), sequence(6), ("scale 2: a.bias a.weight > b.weight",)),
]  # fmt: skip


def noisy(net: Net, x: Tensor) -> Tensor:
    """A linear layer with noise on its weight in training."""
    w = net.a.weight + 0.3 * torch.randn_like(net.a.weight) if net.training else net.a.weight
    return net.b(F.linear(x, w, net.a.bias))


class Masked(nn.Module):
    """Dropout of one's own."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, h: Tensor) -> Tensor:
        if self.training and self.rate > 0:
            return h * (torch.rand_like(h) > self.rate) / (1 - self.rate)
        return h


class Scheduled(nn.Module):
    """Noise whose size a schedule sets later."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = 0.0

    def forward(self, h: Tensor) -> Tensor:
        return h + self.noise * torch.randn_like(h) if self.training and self.noise else h


def reconstructed(net: Net, x: Tensor) -> Tensor:
    """A VAE that returns its reconstruction."""
    h = net.a(x).relu()
    mean = net.m(h)
    if net.training:
        mean = mean + net.v(h).exp() * torch.randn_like(mean)
    return net.b(mean)


def auxiliary(net: Net, x: Tensor) -> Any:
    h = net.a(x).relu()
    return (net.b(h), net.c(h)) if net.training else net.b(h)


def skipped(net: Net, x: Tensor) -> Tensor:
    """Stochastic depth: the block is left out for some rows."""
    h = net.a(x)
    block = net.c(h.relu())
    return net.b(h + (block * torch.randint(2, (len(x), 1)) if net.training else block))


class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.m, self.v, self.b = Linear(3, 5), Linear(5, 4), Linear(5, 4), Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return reconstructed(self, x)


MODES = [
    Way("noisy_weight", lambda: two(noisy), normal(5, 3), normal(5, 3)),
    Way("noise", lambda: two(lambda net, x: net.b(net.a(x) + (torch.randn(5, 4) if net.training else 0))),
        normal(5, 3), normal(5, 3)),
    Way("masked", lambda: two(lambda net, x: net.b(net.d(net.a(x).relu())), d=Masked(0.4)),
        normal(5, 3), normal(5, 3), hidden("scale")),
    Way("masked_later", lambda: two(lambda net, x: net.b(net.d(net.a(x).relu())), d=Masked(0.0)),
        normal(5, 3), normal(5, 3), hidden("scale"), lambda model: setattr(model.d, "rate", 0.4)),
    Way("dropout_later", lambda: two(lambda net, x: net.b(net.d(net.a(x).relu())), d=nn.Dropout(0.0)),
        normal(5, 3), normal(5, 3), hidden("scale"), lambda model: setattr(model.d, "p", 0.4)),
    Way("noise_later", lambda: two(lambda net, x: net.b(net.d(net.a(x).relu())), d=Scheduled()),
        normal(5, 3), normal(5, 3), (), lambda model: setattr(model.d, "noise", 0.4)),
    Way("always_dropped", lambda: two(lambda net, x: net.b(F.dropout(net.a(x), 0.4, training=True))),
        normal(5, 3), normal(5, 3), hidden("scale")),
    Way("variational", Variational, normal(5, 3), normal(5, 3),
        ("scale 5: a.bias a.weight > m.weight v.weight", "permute 5: a.bias a.weight > m.weight v.weight")),
    Way("auxiliary", lambda: two(auxiliary, c=Linear(4, 3)), normal(5, 3), normal(5, 3),
        ("scale 4: a.bias a.weight > b.weight c.weight", "permute 4: a.bias a.weight > b.weight c.weight")),
    Way("stochastic_depth", lambda: two(skipped, c=Linear(4, 4)), normal(5, 3), normal(5, 3),
        ("scale 4: a.bias a.weight c.bias c.weight > b.weight c.weight",
         "permute 4: a.bias a.weight c.bias c.weight > b.weight c.weight")),
]  # fmt: skip


def check_everywhere(model: nn.Module, way: Way, **how: Any) -> None:
    torch.manual_seed(0)
    found = find_symmetries(model, way.inputs(), **how)
    assert sorted(map(described, found.sites)) == sorted(way.sites), str(found)
    way.then(model)
    for inputs in (way.inputs(), way.others()):
        for site in found.sites:
            assert drifts(model, inputs, (site,), 3, alone=False)["all"] <= 1e-10, site.name


@pytest.mark.parametrize(("training", "check"), [(False, False), (True, True)])
@pytest.mark.parametrize("way", SIZES + MODES, ids=str)
def test_sites_hold_at_other_sizes_and_in_both_modes(way: Way, check: bool, training: bool) -> None:
    torch.manual_seed(0)
    check_everywhere(way.build().train(training), way, check=check)


def tasks(net: Net, x: Tensor, task: str = "b") -> Tensor:
    return getattr(net, task)(net.trunk(x).relu())


def trunk() -> nn.Sequential:
    return chain(Linear(3, 5), nn.ReLU(), Linear(5, 4))


def with_heads() -> Net:
    torch.manual_seed(0)
    return Net(tasks, trunk=trunk(), b=Linear(4, 2), c=Linear(4, 3))


INNER = [
    "permute 5: trunk.0.bias trunk.0.weight > trunk.2.weight",
    "scale 5: trunk.0.bias trunk.0.weight > trunk.2.weight",
]


def test_a_head_that_no_trace_sees_bars_what_it_could_read_and_nothing_else() -> None:
    found = find_symmetries(with_heads(), normal(5, 3)())
    assert sorted(map(described, found.sites)) == INNER
    reasons = {refusal.parameters: refusal.reason for refusal in found.refusals}
    assert (
        reasons["trunk.2.weight", "trunk.2.bias"] == "makes units that could meet 'c.weight', which no trace has seen"
    )
    assert "give inputs that use it (also=[...])" in reasons["c.weight", "c.bias"]


def test_further_examples_show_the_other_heads() -> None:
    model, x = with_heads(), normal(5, 3)()
    found = find_symmetries(model, x, also=[(x, "c")])
    made = "trunk.2.bias trunk.2.weight > b.weight c.weight"
    assert sorted(map(described, found.sites)) == sorted([*INNER, f"permute 4: {made}", f"scale 4: {made}"])
    for inputs in (x, (x, "c")):
        assert max(drifts(model, inputs, found.sites, 3).values()) <= 1e-12
    assert verify(model, found, x, also=[(x, "c")]) <= 1e-12


def test_an_idle_module_may_be_left_closed() -> None:
    found = find_symmetries(with_heads(), normal(5, 3)(), leaves=["c"])
    assert len(found.sites) == 4


def test_a_mode_that_cannot_be_traced_is_tried_on_numbers() -> None:
    """A branch on random numbers in training, which drops units."""

    def drop(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).relu()
        return net.b(h * (torch.rand(4) > 0.5) if net.training and torch.rand(()) < 2 else h)

    torch.manual_seed(0)
    model = two(drop).eval()
    found = find_symmetries(model, normal(5, 3)())
    assert list(map(described, found.sites)) == list(hidden("scale"))
    assert any(r.parameters == ("the model",) and "not traced in training" in r.reason for r in found.refusals)
    assert [described(site) for site in find_symmetries(model, normal(5, 3)(), check=False).sites] == list(
        hidden("scale permute")
    )


def test_units_that_a_module_keeps_for_a_loss_stay() -> None:
    def keep(net: Net, x: Tensor) -> Tensor:
        net.kept = net.a(x)
        return net.b(net.kept.relu())

    model = two(keep)
    assert find_symmetries(model, normal(5, 3)()).sites == ()
    assert not hasattr(model, "kept")
