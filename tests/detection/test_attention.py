"""Query-key and value-output pairs of every way to write attention, head by head; and what breaks them."""

import math
from collections.abc import Callable

import peft
import pytest
import torch
import torch.nn.functional as F
from detection.drift import drifts
from detection.nets import Case, Net, described, found, normal, weight
from torch import Tensor, nn

SEQUENCE = normal(2, 5, 8)
OUTPUT = "wv.bias wv.weight > wo.weight"


def heads(h: Tensor, size: int = 4) -> Tensor:
    """``(batch, places, heads * size)`` as ``(batch, heads, places, size)``."""
    return h.unflatten(-1, (-1, size)).transpose(1, 2)


def merge(h: Tensor) -> Tensor:
    return h.transpose(1, 2).flatten(2)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    return F.softmax(scores.masked_fill(mask, -torch.inf), dim=-1) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v)


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT) @ v / 5


def looked_up(phi: Callable[[Tensor], Tensor], normalized: bool = False):
    """Linear attention: ``phi(q) (phi(k)^T v)``, over the sum of its weights where it is normalized."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = phi(q), phi(k)
        total = q @ k.sum(-2, keepdim=True).mT + 1e-3 if normalized else 5
        return q @ (k.mT @ v) / total

    return attend


def rotary(h: Tensor) -> Tensor:
    angle = torch.arange(5.0).to(h)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1]).to(h)
    return h * angle.cos() + torch.cat([-h[..., 2:], h[..., :2]], -1) * angle.sin()


def partly_rotary(h: Tensor) -> Tensor:
    """Rotates the first four numbers of a head and passes the others through."""
    return torch.cat([rotary(h[..., :4]), h[..., 4:]], -1)


def concatenated(keys: Callable[[Net], Tensor]) -> Net:
    """Packed attention with a bias for queries, one for values, and between them what does not move."""

    def function(net: Net, x: Tensor) -> Tensor:
        packed = F.linear(x, net.w, torch.cat([net.q, keys(net), net.v]))
        return net.wo(merge(fused(*map(heads, packed.chunk(3, -1)))))

    net = Net(function, w=weight(24, 8), q=weight(8), v=weight(8), wo=nn.Linear(8, 8))
    net.register_buffer("zeros", torch.zeros(8), persistent=False)
    net.register_buffer("saved", torch.zeros(8))
    return net


def shared_by(heads_of: int, places: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> Net:
    """Two groups of heads of 4, each with three queries, one key and one value beside one another (Falcon)."""

    def function(net: Net, x: Tensor) -> Tensor:
        q, k, v = places(net.w(x).view(2, 5, 2, heads_of + 2, 4))
        spread = (h.expand(2, 5, 2, heads_of, 4).flatten(2, 3).transpose(1, 2) for h in (k, v))
        return net.wo(merge(fused(q.flatten(2, 3).transpose(1, 2), *spread)))

    return Net(function, w=nn.Linear(8, 8 * (heads_of + 2), bias=False), wo=nn.Linear(8 * heads_of, 8))


def attention(attend=fused, change=lambda q, k, v: (q, k, v), queries: int = 2, keys: int = 2) -> nn.Module:
    """Attention on 8 numbers per place, heads of 4; ``change`` says what happens to queries, keys and values."""

    def function(net: Net, x: Tensor) -> Tensor:
        return net.wo(merge(attend(*change(heads(net.wq(x)), heads(net.wk(x)), heads(net.wv(x))))))

    wq, wk, wv, wo = (nn.Linear(a, b) for a, b in ((8, 4 * queries), (8, 4 * keys), (8, 4 * keys), (4 * queries, 8)))
    return Net(function, wq=wq, wk=wk, wv=wv, wo=wo)


def interleaved(attend) -> nn.Module:
    """Queries, keys and values of each head beside one another in one weight (GPT-NeoX, BLOOM)."""

    def function(net: Net, x: Tensor) -> Tensor:
        return net.wo(merge(attend(*heads(net.w(x), 12).chunk(3, -1))))

    return Net(function, w=nn.Linear(8, 24), wo=nn.Linear(8, 8))


def by_baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    slope = torch.linspace(0, 1, 5).to(q).expand(4, 5, 5)
    scores = torch.baddbmm(slope, q.flatten(0, 1), k.flatten(0, 1).mT, beta=1.0, alpha=0.5)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).unflatten(0, (2, 2))


def repeated(times: int):
    def change(q, k, v):
        return q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)

    return change


def expanded(times: int):
    def spread(h: Tensor) -> Tensor:
        return h[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2)

    return lambda q, k, v: (q, spread(k), spread(v))


def queries(group: str, size: str = "4x2") -> str:
    return f"{group} {size}: wq.bias wq.weight > wk.bias wk.weight"


PLAIN = (queries("gl"), f"gl 4x2: {OUTPUT}")

WRITTEN = [
    Case("fused", attention, SEQUENCE, PLAIN),
    Case("by_hand", lambda: attention(by_hand), SEQUENCE, PLAIN),
    Case("by_einsum", lambda: attention(by_einsum), SEQUENCE, PLAIN),
    Case(
        "weights_by_einsum",
        lambda: Net(
            lambda net, x: torch.einsum(
                "bihd,hdm->bim",
                torch.einsum("bhij,bjhd->bihd", torch.softmax(torch.einsum(
                    "bihd,bjhd->bhij", torch.einsum("bim,mhd->bihd", x, net.q), torch.einsum("bim,mhd->bihd", x, net.k)
                ), -1), torch.einsum("bim,mhd->bihd", x, net.v)),
                net.o,
            ),
            q=weight(8, 2, 3), k=weight(8, 2, 3), v=weight(8, 2, 4), o=weight(2, 4, 8),
        ),
        SEQUENCE,
        ("gl 3x2: q > k", "gl 4x2: v > o"),
    ),
    Case("linear_attention", lambda: attention(linear), SEQUENCE, PLAIN),
    Case("looked_up", lambda: attention(looked_up(lambda h: h)), SEQUENCE, PLAIN),
    Case("looked_up_grouped", lambda: attention(looked_up(lambda h: h), repeated(3), queries=6), SEQUENCE, PLAIN),
    Case("looked_up_relu", lambda: attention(looked_up(torch.relu, True)), SEQUENCE,
         (queries("scale", "8"), f"gl 4x2: {OUTPUT}")),
    Case("looked_up_elu", lambda: attention(looked_up(lambda h: F.elu(h) + 1, True)), SEQUENCE, (f"gl 4x2: {OUTPUT}",)),
    Case("one_head", lambda: attention(queries=1, keys=1), SEQUENCE, (queries("gl", "4"), f"gl 4: {OUTPUT}")),
    Case(
        "grouped_fused",
        lambda: attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), queries=6),
        SEQUENCE,
        PLAIN,
    ),
    Case("grouped_repeated", lambda: attention(fused, repeated(3), queries=6), SEQUENCE, PLAIN),
    Case("grouped_expanded", lambda: attention(by_hand, expanded(3), queries=6), SEQUENCE, PLAIN),
    Case(
        "one_key_for_all",
        lambda: attention(fused, expanded(3), queries=3, keys=1),
        SEQUENCE,
        (queries("gl", "4"), f"gl 4: {OUTPUT}"),
    ),
    Case(
        "packed",
        lambda: Net(
            lambda net, x: net.wo(merge(fused(*map(heads, net.w(x).chunk(3, -1))))),
            w=nn.Linear(8, 24), wo=nn.Linear(8, 8),
        ),
        SEQUENCE,
        ("gl 4x2: w.weight w.bias > w.weight w.bias", "gl 4x2: w.weight w.bias > wo.weight"),
    ),
    Case(
        "no_heads",
        lambda: Net(
            lambda net, x: torch.softmax((x @ net.q) @ (x @ net.k).mT, -1) @ (x @ net.v) @ net.o,
            q=weight(8, 3), k=weight(8, 3), v=weight(8, 5), o=weight(5, 8),
        ),
        SEQUENCE,
        ("gl 3: q > k", "gl 5: v > o"),
    ),
    *(
        Case(
            f"bias_by_concatenation_{name}",
            lambda keys=keys: concatenated(keys),
            SEQUENCE,
            ("gl 4x2: q w > w", "gl 4x2: v w > wo.weight"),
        )
        for name, keys in (("zeros", lambda net: torch.zeros_like(net.v)), ("buffer", lambda net: net.zeros))
    ),
    Case(
        "constant_index",
        lambda: shared_by(3, lambda h: (h[..., :-2, :], h[..., [-2], :], h[..., [-1], :])),
        SEQUENCE,
        ("gl 4x2: w.weight > w.weight", "gl 4x2: w.weight > wo.weight"),
    ),
    Case(
        "partly_rotary",
        lambda: Net(
            lambda net, x: net.wo(merge(fused(
                partly_rotary(heads(net.wq(x), 7)), partly_rotary(heads(net.wk(x), 7)), heads(net.wv(x), 7)
            ))),
            wq=nn.Linear(8, 14), wk=nn.Linear(8, 14), wv=nn.Linear(8, 14), wo=nn.Linear(14, 8),
        ),
        SEQUENCE,
        (queries("scale", "4"), queries("gl", "3x2"), f"gl 7x2: {OUTPUT}"),
    ),
    Case(
        "keys_added_to_values",
        lambda: attention(by_hand, lambda q, k, v: (q, k, v + k)),
        SEQUENCE,
        ("gl 4x2: wq.bias wq.weight wo.weight > wk.bias wk.weight wv.bias wv.weight",),
    ),
]  # fmt: skip

BROKEN = [
    Case(
        "rotary",
        lambda: attention(fused, lambda q, k, v: (rotary(q), rotary(k), v)),
        SEQUENCE,
        (queries("scale", "4"), f"gl 4x2: {OUTPUT}"),
    ),
    Case(
        "rotary_of_queries_alone",
        lambda: attention(fused, lambda q, k, v: (rotary(q), k, v)),
        SEQUENCE,
        (queries("scale", "4"), f"gl 4x2: {OUTPUT}"),
    ),
    *(
        Case(
            f"bias_by_concatenation_{name}",
            lambda keys=keys: concatenated(keys),
            SEQUENCE,
            ("gl 4x2: v w > wo.weight",),
            "meet what does not move in",
        )
        for name, keys in (
            ("saved", lambda net: net.saved),
            ("ones", lambda net: torch.ones_like(net.v)),
            ("written", lambda net: net.zeros.add_(0.5) + 0.0),
            ("read_then_written", lambda net: (net.zeros.clone(), net.zeros.add_(0.5))[0]),
        )
    ),
    Case(
        "norms_of_queries",
        lambda: Net(
            lambda net, x: net.wo(merge(fused(net.n(heads(net.wq(x))), net.m(heads(net.wk(x))), heads(net.wv(x))))),
            wq=nn.Linear(8, 8), wk=nn.Linear(8, 8), wv=nn.Linear(8, 8), wo=nn.Linear(8, 8),
            n=nn.LayerNorm(4, bias=False), m=nn.LayerNorm(4, bias=False),
        ),
        SEQUENCE,
        (f"gl 4x2: {OUTPUT}", "scale 4: n.weight > m.weight"),
        "normalized by layer_norm in 'n' (LayerNorm)",
    ),
    Case(
        "unit_vectors",
        lambda: attention(fused, lambda q, k, v: (F.normalize(q, dim=-1), k, v)),
        SEQUENCE,
        (queries("flip", "8"), f"gl 4x2: {OUTPUT}"),
        "linalg_vector_norm",
    ),
    Case(
        "relu_of_queries",
        lambda: attention(fused, lambda q, k, v: (q.relu(), k, v)),
        SEQUENCE,
        (queries("scale", "8"), f"gl 4x2: {OUTPUT}"),
    ),
    Case(
        "relu_of_values",
        lambda: attention(fused, lambda q, k, v: (q, k, v.relu())),
        SEQUENCE,
        (queries("gl"), f"scale 8: {OUTPUT}", f"permute 4x2: {OUTPUT}"),
    ),
    Case(
        "keys_turned",
        lambda: attention(fused, lambda q, k, v: (q, k.flip(-1), v)),
        SEQUENCE,
        PLAIN,
    ),
    Case(
        "interleaved",
        lambda: interleaved(fused),
        SEQUENCE,
        ("gl 4x2: w.bias w.weight > w.bias w.weight", "gl 4x2: w.bias w.weight > wo.weight"),
    ),
    Case(
        "interleaved_baddbmm",
        lambda: interleaved(by_baddbmm),
        SEQUENCE,
        ("gl 4x2: w.bias w.weight > w.bias w.weight", "gl 4x2: w.bias w.weight > wo.weight"),
    ),
    Case(
        "queries_are_keys",
        lambda: attention(fused, lambda q, k, v: (q, q, v)),
        SEQUENCE,
        (f"gl 4x2: {OUTPUT}",),
        "meet their own inverse in scaled_dot_product_attention",
    ),
    Case(
        "half_of_the_keys_from_before",
        lambda: attention(fused, lambda q, k, v: (q, torch.cat([k[..., :2], k[..., 2:].roll(1, 2)], -1), v)),
        SEQUENCE,
        (queries("gl", "2x2"), queries("gl", "2x2"), f"gl 4x2: {OUTPUT}"),
    ),
    *(
        Case(f"table_{name}", lambda attend=attend: attention(attend), SEQUENCE, sites, "multiplied place by place")
        for name, attend, sites in (
            ("passes_relu", lambda q, k, v: q @ (k.mT @ v).relu(), ()),
            ("read_twice", lambda q, k, v: (lambda t: q @ t + t.sum(-2, keepdim=True))(k.mT @ v), ()),
            ("by_einsum", lambda q, k, v: q @ torch.einsum("bhnd,bhne->bhde", k, v), ()),
            ("of_channels", lambda q, k, v: v @ F.scaled_dot_product_attention(q.mT, k.mT, v.mT) @ v, ()),
            ("of_itself", lambda q, k, v: (lambda t: v @ (t @ t))(k.mT @ v), ()),
        )
    ),
    Case(
        "bias_of_scores_from_units",
        lambda: Net(
            lambda net, x: F.scaled_dot_product_attention(x, x, x, attn_mask=net.a(x)) + net.b(net.a(x)),
            a=nn.Linear(8, 5), b=nn.Linear(5, 8),
        ),
        SEQUENCE,
        (),
        "reach scaled_dot_product_attention",
    ),
]  # fmt: skip


def multihead(forward, **options) -> nn.Module:
    return Net(forward, m=nn.MultiheadAttention(8, 2, **options))


PACKED = "m.in_proj_bias m.in_proj_weight"
MODULE = (f"gl 4x2: {PACKED} > {PACKED}", f"gl 4x2: {PACKED} > m.out_proj.weight")


def layer_sites(*attentions: str) -> tuple[str, ...]:
    """The query-key and value-output sites of attention modules."""
    return tuple(line.replace("m.", f"{name}.") for name in attentions for line in MODULE)


MODULES = [
    Case("batch_first", lambda: multihead(lambda net, x: net.m(x, x, x)[0], batch_first=True), SEQUENCE, MODULE),
    Case("places_first", lambda: multihead(lambda net, x: net.m(x, x, x, need_weights=False)[0]), SEQUENCE, MODULE),
    Case("weights_returned", lambda: multihead(lambda net, x: net.m(x, x, x), batch_first=True), SEQUENCE, MODULE),
    Case(
        "cross",
        lambda: multihead(lambda net, x: net.m(x, z := x[:, :3] * 2, z)[0], batch_first=True),
        SEQUENCE,
        MODULE,
    ),
    Case(
        "other_widths",
        lambda: multihead(lambda net, x: net.m(x, z := x[..., :6], z)[0], batch_first=True, kdim=6, vdim=6, bias=False),
        SEQUENCE,
        ("gl 4x2: m.q_proj_weight > m.k_proj_weight", "gl 4x2: m.v_proj_weight > m.out_proj.weight"),
    ),
    Case(
        "layer",
        lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True),
        SEQUENCE,
        (*layer_sites("self_attn"), "scale 12: linear1.bias linear1.weight > linear2.weight"),
        "normalized by layer_norm in 'norm2' (LayerNorm)",
    ),
    Case(
        "layer_norm_first",
        lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True),
        SEQUENCE,
        (
            *layer_sites("self_attn"),
            "scale 8: norm1.bias norm1.weight > self_attn.in_proj_weight",
            "scale 8: norm2.bias norm2.weight > linear1.weight",
        ),
        "gelu",
    ),
    Case(
        "decoder_layer",
        lambda: nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True),
        lambda: (SEQUENCE(), SEQUENCE() * 2),
        (
            *layer_sites("self_attn", "multihead_attn"),
            "scale 12: linear1.bias linear1.weight > linear2.weight",
        ),
        "normalized by layer_norm in 'norm3' (LayerNorm)",
    ),
]


def adapted() -> nn.Module:
    """Attention with peft's low-rank adapters on queries and values, which alone are trained; B is not zero."""
    config = peft.LoraConfig(r=3, target_modules=["wq", "wv"])
    model = peft.get_peft_model(attention(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


ADAPTER = "base_model.model.w{0}.lora_A.default.weight > base_model.model.w{0}.lora_B.default.weight"
ADAPTERS = [
    Case("peft", adapted, SEQUENCE, tuple(f"gl 3: {ADAPTER.format(w)}" for w in "qv"), "which is frozen"),
]

CASES = WRITTEN + BROKEN + MODULES + ADAPTERS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sites_are_those_counted_by_hand(case: Case) -> None:
    assert sorted(map(described, found(case).sites)) == case.expected
    assert any(case.refusal in refusal.reason for refusal in found(case).refusals)


@pytest.mark.parametrize("case", [case for case in CASES if case.sites], ids=str)
def test_no_site_moves_the_outputs(case: Case) -> None:
    worst = drifts(case.model(), case.inputs(), found(case).sites)
    assert max(worst.values()) <= 1e-10, worst


def test_exchanging_units_across_heads_would_move_the_outputs() -> None:
    case = next(case for case in CASES if case.name == "relu_of_values")
    site = next(site for site in found(case).sites if described(site).startswith("permute"))
    swap = torch.tensor([[1, 0, 2, 3], [0, 1, 2, 3]])
    across = torch.tensor([4, 1, 2, 3, 0, 5, 6, 7])
    model, x = case.model().double(), case.inputs().double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    before = model(x)
    within = torch.func.functional_call(model, site.act(params, swap), (x,))
    crossed = {**params, "wv.weight": params["wv.weight"][across], "wv.bias": params["wv.bias"][across]}
    crossed["wo.weight"] = params["wo.weight"][:, across]
    assert (within - before).norm() <= 1e-12 * before.norm()
    assert (torch.func.functional_call(model, crossed, (x,)) - before).norm() > 1e-3 * before.norm()
