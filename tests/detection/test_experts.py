"""Experts that a router chooses among: whole ones change places, with the rows of the router."""

import pytest
import torch
import transformers
from detection.drift import drifts
from detection.nets import Case, Net, described, found, normal, weight
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.integrations import moe  # noqa: F401  (it registers grouped_mm_fallback)

from meta_teleport.detection.detect import find_symmetries

EXPERTS, BEST = 5, 2
ROWS = normal(7, 3)
grouped = torch.ops.transformers.grouped_mm_fallback


def chosen(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of the best experts of every row, and which they are; ``(rows * BEST,)``."""
    weights, names = net.r(x).softmax(-1).topk(BEST, -1)
    return (weights / weights.sum(-1, keepdim=True)).reshape(-1), names.reshape(-1)


def ends_of(names: Tensor) -> Tensor:
    return names.float().histc(EXPERTS, 0, EXPERTS - 1).cumsum(0, dtype=torch.int32)


def undone(order: Tensor) -> Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    return inverse


def by_expert(names: Tensor) -> tuple[Tensor, Tensor]:
    return names.sort()


def sorted_by_argsort(names: Tensor) -> tuple[Tensor, Tensor]:
    order = names.argsort()
    return names[order], order


def expected(net: Net, x: Tensor) -> Tensor:
    """What every form below returns, expert by expert."""
    weights, names = (t.reshape(-1, BEST) for t in chosen(net, x))
    made = torch.stack([(silu(x @ u) @ v) for u, v in zip(net.u, net.v, strict=True)], 1)  # (rows, experts, 2)
    return (made.gather(1, names.unsqueeze(-1).expand(-1, -1, 2)) * weights.unsqueeze(-1)).sum(1)


def sorted_rows(arrange=by_expert, ends=ends_of, invert=undone, between=lambda net, h, names: h):
    """Rows sorted by expert, two layers of that expert, and the rows in order again."""

    def function(net: Net, x: Tensor) -> Tensor:
        weights, names = chosen(net, x)
        names, order = arrange(names)
        at = ends(names)
        h = between(net, silu(grouped(x[order // BEST], net.u, at)), names)
        made = grouped(h, net.v, at) * weights[order].unsqueeze(-1)
        return made[invert(order)].view(-1, BEST, 2).sum(1)

    return function


def gathered(net: Net, x: Tensor) -> Tensor:
    """A copy of its expert's weights for every row."""
    weights, names = chosen(net, x)
    h = silu(torch.bmm(x.repeat_interleave(BEST, 0).unsqueeze(1), net.u[names]))
    return (torch.bmm(h, net.v[names]).squeeze(1) * weights.unsqueeze(-1)).view(-1, BEST, 2).sum(1)


def case(name: str, function, *sites: str, **parts: Tensor) -> Case:
    def build() -> Net:
        own = {"r": nn.Linear(3, EXPERTS), "u": weight(EXPERTS, 3, 4), "v": weight(EXPERTS, 4, 2), **parts}
        return Net(function, **own)

    return Case(name, build, ROWS, sites)


WHOLE, INSIDE = "permute 5: r.weight r.bias > u v", "permute 4: u > v"
EXCHANGED = [
    case("sorted", sorted_rows(), WHOLE, INSIDE),
    case("sorted_by_argsort", sorted_rows(sorted_by_argsort, invert=torch.argsort), WHOLE, INSIDE),
    case("gathered", gathered, WHOLE),
    case("biased", sorted_rows(between=lambda net, h, names: h + net.c[names]), f"{WHOLE} c", c=weight(EXPERTS, 1)),
]


def with_names(function, add):
    """A form whose result has something added that is made of the names of the experts."""
    return lambda net, x: function(net, x) + add(net, chosen(net, x)[1])


def aliased(net: Net, x: Tensor) -> Tensor:
    """An order that is written into memory which has another name."""
    order = chosen(net, x)[1].sort()[1]
    inverse = torch.empty_like(order)
    other = inverse.view(-1)
    inverse[order] = torch.arange(len(order))
    return gathered(net, x) + other[0].float()


def of_another_choice(names: Tensor) -> tuple[Tensor, Tensor]:
    order = names.view(-1, BEST).t().reshape(-1).argsort()
    return names[order], order


KEPT = [
    case("names_as_numbers", with_names(gathered, lambda net, names: names.float().mean())),
    case("names_returned", lambda net, x: (gathered(net, x), chosen(net, x)[1])),
    case("the_first_expert_again", with_names(gathered, lambda net, names: net.u[0].sum())),
    case("all_experts_again", lambda net, x: gathered(net, x) + (x @ net.u).sum(0)[:, :2]),
    case("ends_that_are_off", sorted_rows(ends=lambda names: (ends_of(names) - 1).clamp(min=0))),
    case("fewer_bins", sorted_rows(ends=lambda names: ends_of(names.clamp(max=3)))),
    case("not_in_their_own_order", sorted_rows(invert=lambda order: order)),
    case("sums_along_the_order", sorted_rows(between=lambda net, h, names: h.cumsum(0))),
    case("weighed_by_place", sorted_rows(between=lambda net, h, names: h * torch.arange(len(h)).unsqueeze(-1))),
    case("part_of_the_order", sorted_rows(between=lambda net, h, names: torch.cat([h[:3], 2 * h[3:]]))),
    case("sorted_backwards", sorted_rows(lambda names: names.sort(descending=True))),
    case("sorted_by_other_names", sorted_rows(of_another_choice)),
    case("an_order_under_another_name", aliased),
    case("numbers_of_their_own", lambda net, x: gathered(net, x) + torch.arange(5.0)[chosen(net, x)[1]].sum()),
]  # fmt: skip


@pytest.mark.parametrize("case", EXCHANGED, ids=str)
def test_experts_change_places(case: Case) -> None:
    model, sites = case.model().double(), found(case).sites
    if case.name != "biased":
        assert torch.allclose(model(ROWS().double()), expected(model, ROWS().double()), rtol=1e-12)
    assert sorted(map(described, sites)) == case.expected
    assert max(drifts(case.model(), ROWS(), sites, 5).values()) <= 1e-10
    (whole,) = (site for site in sites if site.group.k == EXPERTS)
    for name in ("r.weight", "u", "v"):
        lacking = (whole.among(set(whole.parameters) - {name}),)
        assert drifts(case.model(), ROWS(), lacking, 3)["all"] > 1e-3


@pytest.mark.parametrize("case", KEPT, ids=str)
def test_experts_that_are_told_apart_keep_their_places(case: Case) -> None:
    assert not [described(site) for site in found(case).sites if site.group.k == EXPERTS]


def test_a_frozen_expert_keeps_all_in_their_places() -> None:
    model = EXCHANGED[0].model()
    model.v.requires_grad_(False)
    assert not find_symmetries(model, ROWS(), check=False).sites


@pytest.mark.parametrize("form", ["grouped_mm", "batched_mm"])
def test_experts_of_mixtral_change_places(form: str) -> None:
    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=6,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model, tokens = transformers.MixtralForCausalLM(config).eval(), {"input_ids": torch.arange(14).view(2, 7)}
    model.set_experts_implementation(form)
    sites = [site for site in find_symmetries(model, tokens).sites if "gate" in site.name and site.group.k == 4]
    mlp = "model.layers.0.mlp"
    experts = [f"{mlp}.experts.gate_up_proj", f"{mlp}.experts.down_proj"]
    assert [site.parameters for site in sites] == [(f"{mlp}.gate.weight", *experts)]
