"""Sites and refusals of small networks, written by hand; and none of the sites moves the outputs."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from detection.drift import drifts
from detection.nets import Case, Net, chain, described, found, normal, weight
from timm.layers import ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.integrations import moe  # noqa: F401  (it registers grouped_mm_fallback)

from meta_teleport.detection.detect import find_symmetries
from meta_teleport.operations import pointwise
from meta_teleport.operations.values import HANDLERS

Linear, Conv = nn.Linear, nn.Conv2d
ROWS, SEQUENCE, IMAGE = normal(5, 3), normal(2, 5, 3), normal(2, 3, 8, 8)


def hidden(kind: str, *extra: str) -> tuple[str, ...]:
    """The sites of one hidden layer ``0`` of four units that ``2`` reads, with more parameters that make them."""
    made = " ".join(("0.weight", "0.bias", *extra))
    return tuple(f"{group} 4: {made} > 2.weight" for group in kind.split())


grouped_mm_fallback = torch.ops.transformers.grouped_mm_fallback


def routed(between):
    """Rows sorted by the expert that a router chooses, two layers of that expert, and the rows in order again."""

    def function(net: Net, x: Tensor) -> Tensor:
        chosen, order = net.r(x).argmax(-1).sort()
        ends = torch.nn.functional.one_hot(chosen, 5).sum(0).cumsum(0).to(torch.int32)
        h = between(grouped_mm_fallback(x[order], net.u, ends))
        return grouped_mm_fallback(h, net.v, ends)[order.argsort()]

    return function


ROWS_OF, GAIN = "{}.parametrizations.weight.original1", "{}.parametrizations.weight.original0"
normed = nn.utils.parametrizations.weight_norm


def tokens() -> Tensor:
    return torch.tensor([[0, 3, 6, 1], [2, 2, 5, 4]])


def two(function, **parts) -> Net:
    """Two layers a, g beside each other on three inputs, and a reader b of four units."""
    return Net(function, **{"a": Linear(3, 4), "g": Linear(3, 4), "b": Linear(4, 3), **parts})


@dataclass
class Pair:
    logits: Tensor
    features: Tensor


LAYERS = [
    Case("relu", lambda: chain(Linear(3, 4), nn.ReLU(), Linear(4, 2)), ROWS, hidden("scale permute"), "outputs"),
    Case("leaky", lambda: chain(Linear(3, 4), nn.LeakyReLU(0.1), Linear(4, 2)), ROWS, hidden("scale permute")),
    Case("steep_leaky", lambda: chain(Linear(3, 4), nn.LeakyReLU(-2.0), Linear(4, 2)), ROWS, hidden("scale permute")),
    Case("prelu", lambda: chain(Linear(3, 4), nn.PReLU(), Linear(4, 2)), ROWS, hidden("scale permute"), "prelu in '1'"),
    Case("prelu_each", lambda: chain(Linear(3, 4), nn.PReLU(4), Linear(4, 2)), ROWS, hidden("scale")),
    Case("gelu", lambda: chain(Linear(3, 4), nn.GELU(), Linear(4, 2)), ROWS, hidden("permute"), "gelu in '1' (GELU)"),
    Case("tanh", lambda: chain(Linear(3, 4), nn.Tanh(), Linear(4, 2)), ROWS, hidden("flip permute"), "not positively"),
    Case("dropout", lambda: chain(Linear(3, 4), nn.Dropout(0.3), Linear(4, 2)), ROWS, hidden("scale")),
    Case("softmax", lambda: chain(Linear(3, 4), nn.Softmax(-1), Linear(4, 2)), ROWS, hidden("permute"), "softmax in"),
    Case("rrelu", lambda: chain(Linear(3, 4), nn.RReLU(), Linear(4, 2)), ROWS, (), "rrelu in '1'"),
    Case(
        "linear",
        lambda: chain(Linear(3, 5), Linear(5, 4, bias=False), Linear(4, 2)),
        ROWS,
        ("gl 5: 0.weight 0.bias > 1.weight", "gl 4: 1.weight > 2.weight"),
    ),
    Case(
        "one_relu_many_times",
        lambda: Net(
            lambda net, x: net.c(net.r(net.b(net.r(net.a(x))))),
            a=Linear(3, 4), b=Linear(4, 5), c=Linear(5, 2), r=nn.ReLU(inplace=True),
        ),
        ROWS,
        (
            "scale 4: a.weight a.bias > b.weight", "permute 4: a.weight a.bias > b.weight",
            "scale 5: b.weight b.bias > c.weight", "permute 5: b.weight b.bias > c.weight",
        ),
    ),
    Case("one_unit", lambda: chain(Linear(3, 1), Linear(1, 2)), ROWS, ("gl 1: 0.weight 0.bias > 1.weight",)),
    Case("one_row", lambda: chain(Linear(3, 4), nn.ReLU(), Linear(4, 2)), normal(1, 3), hidden("scale permute")),
    Case(
        "unused",
        lambda: Net(lambda net, x: net.b(net.a(x)), a=Linear(3, 4), b=Linear(4, 2), idle=Linear(7, 7)),
        ROWS,
        (),
        "could meet 'idle.weight', which no trace has seen",
    ),
    Case(
        "stored_transposed",
        lambda: Net(lambda net, x: (x @ net.v).relu() @ net.u, v=weight(3, 4), u=weight(4, 2)),
        ROWS,
        ("scale 4: v > u", "permute 4: v > u"),
    ),
    Case(
        "columns",
        lambda: Net(lambda net, x: net.u @ (net.v @ x), v=weight(4, 3), u=weight(2, 4)),
        normal(3, 6),
        ("gl 4: v > u",),
    ),
    Case(
        "adapter",
        lambda: Net(lambda net, x: net.a(x) + 0.5 * (x @ net.down.T @ net.up), a=Linear(3, 4),
                    down=weight(2, 3), up=weight(2, 4)),
        ROWS,
        ("gl 2: down > up",),
    ),
    Case(
        "product_of_four",
        lambda: Net(lambda net, x: torch.einsum("bi,ji,kj,mk->bm", x, net.u, net.v, net.w),
                    u=weight(4, 3), v=weight(4, 4), w=weight(2, 4)),
        ROWS,
        ("gl 4: u > v", "gl 4: v > w"),
    ),
    Case(
        "product_of_three_beginning_with_parameters",
        lambda: Net(lambda net, x: torch.einsum("ij,jk,bk->bi", net.u, net.v, x), u=weight(2, 4), v=weight(4, 3)),
        ROWS,
        ("gl 4: v > u",),
    ),
    Case(
        "product_with_a_scale",
        lambda: Net(lambda net, x: torch.einsum("bi,i,oi->bo", net.a(x).relu(), net.s, net.w),
                    a=Linear(3, 4), s=weight(4), w=weight(2, 4)),
        ROWS,
        ("scale 4: a.weight a.bias > s", "permute 4: a.weight a.bias s > w", "scale 4: s > w"),
    ),
    Case(
        "bags",
        lambda: chain(nn.EmbeddingBag(7, 4), Linear(4, 2)), tokens, ("gl 4: 0.weight > 1.weight",),
    ),
    Case(
        "bags_of_largest",
        lambda: chain(nn.EmbeddingBag(7, 4, mode="max"), Linear(4, 2)),
        tokens,
        ("scale 4: 0.weight > 1.weight", "permute 4: 0.weight > 1.weight"),
    ),
    Case(
        "bags_weighed_by_units",
        lambda: Net(lambda net, x, t: net.b(net.e(t, per_sample_weights=net.a(x).sigmoid())),
                    e=nn.EmbeddingBag(7, 4, mode="sum"), a=Linear(3, 4), b=Linear(4, 2)),
        lambda: (normal(2, 3)(), tokens()),
        ("gl 4: e.weight > b.weight",),
        "sigmoid in 'model' (Net)",
    ),
    Case(
        "experts_side_by_side",
        lambda: Net(lambda net, x: torch.bmm((torch.bmm(x.expand(5, 6, 3), net.u) + net.c).relu(), net.v).sum(0),
                    u=weight(5, 3, 4), c=weight(5, 1, 4), v=weight(5, 4, 2)),
        normal(6, 3),
        ("scale 20: u c > v", "permute 4x5: u c > v"),
    ),
    Case(
        "experts_side_by_side_written_otherwise",
        lambda: Net(lambda net, x: torch.einsum("eoi,ein->no", net.v, torch.einsum("eij,nj->ein", net.u, x)),
                    u=weight(5, 4, 3), v=weight(5, 2, 4)),
        normal(6, 3),
        ("gl 20: u > v",),
    ),
    Case(
        "experts_that_are_normalized_together",
        lambda: Net(lambda net, x: torch.bmm(torch.bmm(x.expand(5, 6, 3), net.u).softmax(0), net.v),
                    u=weight(5, 3, 4), v=weight(5, 4, 2)),
        normal(6, 3),
        (),
        "softmax",
    ),
    *(
        Case(
            name,
            lambda between=between: Net(routed(between), u=weight(5, 4, 4), v=weight(5, 4, 4), r=Linear(4, 5)),
            normal(6, 4),
            sites,
        )
        for name, between, sites in (
            ("routed", torch.relu, ("scale 4: u > v", "permute 4: u > v")),
            ("routed_linearly", lambda h: 2 * h, ("gl 4: u > v",)),
            ("routed_in_part", lambda h: torch.cat([h[:2].tanh(), h[2:]]), ("flip 4: u > v", "permute 4: u > v")),
            ("routed_with_numbers", lambda h: h + torch.arange(4.0).to(h), ()),
            ("routed_and_normalized", lambda h: h.softmax(-1), ("permute 4: u > v",)),
        )
    ),
    Case("table", lambda: chain(nn.Embedding(7, 4), Linear(4, 2)), tokens, ("gl 4: 0.weight > 1.weight",)),
    Case(
        "tied_head",
        lambda: Net(lambda net, x: net.a(net.e(x)) @ net.e.weight.T, e=nn.Embedding(7, 4), a=Linear(4, 4)),
        tokens,
        (),
        "'e.weight', which embedding in 'e' (Embedding) and matmul in 'model' (Net) share",
    ),
    Case("recurrent", lambda: nn.LSTM(3, 4), ROWS, (), "lstm in 'model' (LSTM)"),
    Case("bilinear", lambda: Net(lambda net, x: net.b(net.a(x, x)), a=nn.Bilinear(3, 3, 4), b=Linear(4, 2)), ROWS),
]  # fmt: skip

IMAGES = [
    Case(
        "conv",
        lambda: chain(Conv(3, 4, 3, padding=1), nn.ReLU(), Conv(4, 2, 3)),
        IMAGE,
        hidden("scale permute"),
    ),
    Case("conv_linear", lambda: chain(Conv(3, 4, 3, padding=1), nn.AvgPool2d(2), Conv(4, 2, 3)), IMAGE, hidden("gl")),
    Case(
        "conv1d",
        lambda: chain(nn.Conv1d(3, 4, 3), nn.MaxPool1d(2), nn.Conv1d(4, 2, 2)),
        normal(2, 3, 9),
        hidden("scale permute"),
    ),
    Case(
        "unbatched",
        lambda: chain(Conv(3, 4, 3), nn.ReLU(), Conv(4, 2, 3)),
        normal(3, 8, 8),
        hidden("scale permute"),
    ),
    *(
        Case(
            f"padding_{mode}",
            lambda mode=mode: chain(Conv(3, 4, 3, padding=1), nn.ReLU(), Conv(4, 2, 3, padding=1, padding_mode=mode)),
            IMAGE,
            hidden("scale permute"),
        )
        for mode in ("reflect", "circular", "replicate")
    ),
    *(
        Case(pool.__class__.__name__, lambda pool=pool: chain(Conv(3, 4, 3), pool, Conv(4, 2, 1)), IMAGE, hidden(kind))
        for pool, kind in (
            (nn.MaxPool2d(3, 2, ceil_mode=True), "scale permute"),
            (nn.AvgPool2d(2, ceil_mode=True), "gl"),
            (nn.AdaptiveAvgPool2d(3), "gl"),
            (nn.Upsample(scale_factor=2), "gl"),
            (nn.Upsample(scale_factor=2, mode="bilinear"), "gl"),
        )
    ),
    Case(
        "flatten",
        lambda: chain(Conv(3, 4, 3), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), Linear(36, 2)),
        IMAGE,
        hidden("scale permute"),
    ),
    Case(
        "depthwise",
        lambda: chain(Conv(3, 4, 1), Conv(4, 8, 3, groups=4), nn.ReLU(), Conv(8, 2, 1)),
        IMAGE,
        ("scale 4: 0.weight 0.bias > 1.weight", "scale 8: 1.weight 1.bias > 3.weight"),
    ),
    Case(
        "grouped",
        lambda: chain(Conv(3, 6, 1), Conv(6, 4, 3, groups=2), nn.ReLU(), Conv(4, 2, 1)),
        IMAGE,
        ("scale 6: 0.weight 0.bias > 1.weight", "scale 4: 1.weight 1.bias > 3.weight"),
    ),
    Case(
        "shuffled",
        lambda: chain(Conv(3, 16, 3), nn.PixelShuffle(2), Conv(4, 2, 3)),
        IMAGE,
        ("gl 4: 0.weight 0.bias > 2.weight",),
    ),
    Case(
        "transposed",
        lambda: chain(nn.ConvTranspose2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3)),
        IMAGE,
        ("scale 4: 0.bias 0.weight > 2.weight", "permute 4: 0.bias 0.weight > 2.weight"),
    ),
    Case(
        "transposed_groups",
        lambda: chain(Conv(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ReLU(), Conv(6, 2, 1)),
        IMAGE,
        ("scale 4: 0.weight 0.bias > 2.weight", "scale 6: 2.weight 2.bias > 4.weight"),
    ),
    Case(
        "transposed_in_space",
        lambda: chain(
            nn.ConvTranspose3d(3, 4, 3), nn.Upsample(scale_factor=2, mode="trilinear"), nn.ConvTranspose3d(4, 2, 3)
        ),
        normal(2, 3, 3, 3, 3),
        hidden("gl"),
    ),
    Case(
        "padded_as_tensorflow_does",
        lambda: chain(Conv(3, 4, 3), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2), Conv(4, 2, 1)),
        IMAGE,
        tuple(f"{group} 4: 0.weight 0.bias > 3.weight" for group in ("scale", "permute")),
    ),
    Case(
        "squeeze_and_excite",
        lambda: chain(Conv(3, 4, 3), Net(lambda net, h: h * h.mean((2, 3), keepdim=True).sigmoid()), Conv(4, 2, 1)),
        IMAGE,
        hidden("permute"),
        "pass, and are not positively homogeneous: sigmoid",
    ),
]

NORMS = [
    Case(
        "batch_norm",
        lambda: chain(Conv(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Conv(4, 2, 3)),
        IMAGE,
        ("scale 4: 1.weight 1.bias > 3.weight",
         "permute 4: 0.weight 0.bias 1.weight 1.bias 1.running_mean 1.running_var > 3.weight"),
        "normalized by batch_norm in '1' (BatchNorm2d)",
    ),
    Case(
        "plain_batch_norm",
        lambda: chain(Conv(3, 4, 3), nn.BatchNorm2d(4, affine=False), Conv(4, 2, 3)),
        IMAGE,
        ("permute 4: 0.weight 0.bias 1.running_mean 1.running_var > 2.weight",),
        "normalized by batch_norm",
    ),
    Case(
        "layer_norm",
        lambda: chain(Linear(3, 4), nn.LayerNorm(4), Linear(4, 2)),
        ROWS,
        ("scale 4: 1.weight 1.bias > 2.weight",),
        "normalized by layer_norm in '1' (LayerNorm)",
    ),
    Case("rms_norm", lambda: chain(Linear(3, 4), nn.RMSNorm(4), Linear(4, 2)), ROWS, ("scale 4: 1.weight > 2.weight",)),
    Case(
        "rms_norm_by_hand",
        lambda: Net(lambda net, x: net.b(net.g * (x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt())),
                    g=weight(3), b=Linear(3, 2)),
        ROWS,
        ("scale 3: g > b.weight",),
    ),
    Case(
        "group_norm",
        lambda: chain(Conv(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), Conv(4, 2, 3)),
        IMAGE,
        ("scale 4: 1.weight 1.bias > 3.weight",),
        "normalized by group_norm",
    ),
    Case(
        "norm_before_tanh",
        lambda: chain(Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), Linear(4, 2)),
        ROWS,
        ("flip 4: 1.weight 1.bias > 3.weight",),
        "normalized by layer_norm",
    ),
    Case(
        "norm_before_gelu",
        lambda: chain(Conv(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), Conv(4, 2, 3)),
        IMAGE,
        ("permute 4: 0.weight 0.bias 1.weight 1.bias 1.running_mean 1.running_var > 3.weight",),
        "gelu in '2' (GELU)",
    ),
    Case(
        "channel_scale",
        lambda: Net(lambda net, x: net.b((net.a(x) * net.g + net.h).relu()),
                    a=Conv(3, 4, 3), b=Conv(4, 2, 3), g=weight(4, 1, 1), h=weight(4, 1, 1)),
        IMAGE,
        ("scale 4: a.weight a.bias > g", "permute 4: a.weight a.bias g h > b.weight", "scale 4: g h > b.weight"),
    ),
    Case(
        "weight_norm",
        lambda: chain(normed(Linear(3, 4)), nn.ReLU(), Linear(4, 2)),
        ROWS,
        (
            f"scale 4: 0.bias {GAIN.format(0)} > 2.weight",
            f"permute 4: 0.bias {GAIN.format(0)} {ROWS_OF.format(0)} > 2.weight",
        ),
    ),
    Case(
        "weight_norm_that_reads",
        lambda: chain(Conv(3, 4, 3), nn.ReLU(), normed(Conv(4, 2, 3))),
        IMAGE,
        (f"permute 4: 0.bias 0.weight > {ROWS_OF.format(2)}",),
        "meet a normalized weight in conv2d in '2'",
    ),
    Case(
        "weight_norm_of_linear_maps",
        lambda: chain(normed(Linear(3, 4)), Linear(4, 2)),
        ROWS,
        (
            f"scale 4: 0.bias {GAIN.format(0)} > 1.weight",
            f"permute 4: 0.bias {GAIN.format(0)} {ROWS_OF.format(0)} > 1.weight",
        ),
    ),
    Case(
        "weight_norm_of_columns",
        lambda: chain(Linear(3, 4), nn.ReLU(), normed(Linear(4, 2), dim=1)),
        ROWS,
        (
            f"scale 4: 0.bias 0.weight > {GAIN.format(2)}",
            f"permute 4: 0.bias 0.weight > {GAIN.format(2)} {ROWS_OF.format(2)}",
        ),
    ),
    Case(
        "weight_norm_of_everything",
        lambda: chain(normed(Linear(3, 4), dim=None), nn.ReLU(), Linear(4, 2)),
        ROWS,
        (),
        "weight_norm in '0.parametrizations.weight.0' (_WeightNorm), on which no group acts",
    ),
    Case(
        "weight_norm_and_the_weight_itself",
        lambda: Net(lambda net, x: net.b(net.a(x).relu()) + net.a.parametrizations.weight.original1.sum(),
                    a=normed(Linear(3, 4)), b=Linear(4, 2)),
        ROWS,
        (),
    ),
    Case(
        "standardized_convolution",
        lambda: chain(ScaledStdConv2d(3, 4, 3), nn.ReLU(), ScaledStdConv2d(4, 5, 3), nn.ReLU(), Conv(5, 2, 1)),
        IMAGE,
        (
            "permute 4: 0.bias 0.gain 0.weight > 2.weight",
            "scale 5: 2.bias 2.gain > 4.weight",
            "permute 5: 2.bias 2.gain 2.weight > 4.weight",
        ),
        "meet a normalized weight in conv2d in '2'",
    ),
    Case(
        "standardized_convolution_without_gain",
        lambda: chain(StdConv2d(3, 4, 3, bias=False), nn.ReLU(), Conv(4, 2, 3)),
        IMAGE,
        ("permute 4: 0.weight > 2.weight",),
    ),
]  # fmt: skip

STREAMS = [
    Case(
        "planted_residual",
        lambda: Net(lambda net, x: net.b(x + net.a(x).relu()), a=Linear(3, 3), b=Linear(3, 2)),
        ROWS,
        (),
        "makes units that are added to what does not move in add in 'model' (Net)",
    ),
    Case(
        "stream",
        lambda: Net(lambda net, x: (lambda h: net.o(h + net.b(net.a(h).relu()).relu()))(net.e(x).relu()),
                    e=Linear(3, 4), a=Linear(4, 6), b=Linear(6, 4), o=Linear(4, 2)),
        ROWS,
        (
            "scale 4: e.weight e.bias b.weight b.bias > a.weight o.weight",
            "permute 4: e.weight e.bias b.weight b.bias > a.weight o.weight",
            "scale 6: a.weight a.bias > b.weight",
            "permute 6: a.weight a.bias > b.weight",
        ),
    ),
    Case(
        "tanh_stream",
        lambda: Net(lambda net, x: (lambda h: net.o(h + net.b(net.a(h).relu()).tanh()))(net.e(x).tanh()),
                    e=Linear(3, 4), a=Linear(4, 6), b=Linear(6, 4), o=Linear(4, 2)),
        ROWS,
        (
            "flip 4: e.weight e.bias b.weight b.bias > a.weight o.weight",
            "permute 4: e.weight e.bias b.weight b.bias > a.weight o.weight",
            "scale 6: a.weight a.bias > b.weight",
            "permute 6: a.weight a.bias > b.weight",
        ),
    ),
    Case(
        "linear_stream",
        lambda: Net(lambda net, x: (lambda h: net.o(h + net.b(net.a(h).relu())))(net.e(x)),
                    e=Linear(3, 4), a=Linear(4, 6), b=Linear(6, 4), o=Linear(4, 2)),
        ROWS,
        (
            "gl 4: e.weight e.bias b.weight b.bias > a.weight o.weight",
            "scale 6: a.weight a.bias > b.weight",
            "permute 6: a.weight a.bias > b.weight",
        ),
    ),
    Case(
        "recurrence",
        lambda: Net(lambda net, x: net.o((net.i(x) + net.h((net.i(x) + net.h(net.i(x).relu())).relu())).relu()),
                    i=Linear(3, 4), h=Linear(4, 4), o=Linear(4, 2)),
        ROWS,
        (
            "scale 4: i.weight i.bias h.weight h.bias > h.weight o.weight",
            "permute 4: i.weight i.bias h.weight h.bias > h.weight o.weight",
        ),
    ),
    Case(
        "positions",
        lambda: Net(lambda net, x: net.b(torch.cat([net.c.expand(2, 1, 4), net.a(x)], 1) + net.p),
                    a=Linear(3, 4), b=Linear(4, 2), c=weight(1, 4), p=weight(6, 4)),
        SEQUENCE,
        ("gl 4: c a.weight a.bias p > b.weight",),
    ),
    Case(
        "one_position_for_all",
        lambda: Net(lambda net, x: net.b(net.a(x) + net.p), a=Linear(3, 4), b=Linear(4, 2), p=weight(5, 1)),
        SEQUENCE,
        ("gl 1: a.weight a.bias p > b.weight",),
    ),
    Case(
        "mixer",
        lambda: Net(lambda net, x: net.d(net.c(x + net.b(net.a(x.mT).relu()).mT).relu()),
                    a=Linear(5, 6), b=Linear(6, 5), c=Linear(3, 7), d=Linear(7, 3)),
        SEQUENCE,
        (
            "scale 6: a.weight a.bias > b.weight", "permute 6: a.weight a.bias > b.weight",
            "scale 7: c.weight c.bias > d.weight", "permute 7: c.weight c.bias > d.weight",
        ),
        "added to what does not move",
    ),
    Case(
        "side_by_side",
        lambda: Net(lambda net, x: net.b(torch.cat([net.a(x), net.g(x)], -1)),
                    a=Linear(3, 4), g=Linear(3, 5), b=Linear(9, 2)),
        ROWS,
        ("gl 4: a.weight a.bias > b.weight", "gl 5: g.weight g.bias > b.weight"),
    ),
    Case("one_after_the_other", lambda: two(lambda net, x: net.b(torch.cat([net.a(x), net.g(x)]))), ROWS,
         ("gl 4: a.weight a.bias g.weight g.bias > b.weight",)),
    Case(
        "halves_added",
        lambda: Net(lambda net, x: net.b(net.a(x)[:, :2] + net.a(x)[:, 2:]), a=Linear(3, 4), b=Linear(2, 2)),
        ROWS,
        ("gl 2: a.weight a.bias > b.weight",),
    ),
    Case(
        "places_merged",
        lambda: Net(lambda net, x: net.b(net.a(x).view(2, 2, 8)), a=Linear(3, 4), b=Linear(8, 2)),
        normal(2, 4, 3),
        ("gl 4: a.weight a.bias > b.weight",),
    ),
    Case(
        "shared",
        lambda: Net(lambda net, x: net.b(net.a(x).relu()) + net.b(net.a(-x).relu()), a=Linear(3, 4), b=Linear(4, 2)),
        ROWS,
        ("scale 4: a.weight a.bias > b.weight", "permute 4: a.weight a.bias > b.weight"),
    ),
    Case(
        "shared_in_a_chain",
        lambda: Net(lambda net, x: net.b(net.a(net.a(x).relu()).relu()), a=Linear(3, 3), b=Linear(3, 2)),
        ROWS,
        (),
        "depend on 'a.weight', which linear in 'a' (Linear) and linear in 'a' (Linear) share",
    ),
]  # fmt: skip

GATES = [
    Case("swiglu", lambda: two(lambda net, x: net.b(F.silu(net.a(x)) * net.g(x))), ROWS,
         ("permute 4: a.weight a.bias g.weight g.bias > b.weight", "scale 4: g.weight g.bias > b.weight"), "silu"),
    Case("reglu", lambda: two(lambda net, x: net.b(net.a(x).relu() * net.g(x))), ROWS,
         ("permute 4: a.weight a.bias g.weight g.bias > b.weight", "scale 4: g.weight g.bias > b.weight"),
         "held still as the gate of"),
    Case("product", lambda: two(lambda net, x: net.b(net.a(x) * net.g(x))), ROWS,
         ("permute 4: a.weight a.bias g.weight g.bias > b.weight", "scale 4: g.weight g.bias > b.weight")),
    Case("glu", lambda: chain(Linear(3, 8), nn.GLU(), Linear(4, 2)), ROWS,
         ("scale 4: 0.weight 0.bias > 2.weight", "permute 4: 0.weight 0.bias > 2.weight")),
    Case("packed_swiglu",
         lambda: Net(lambda net, x: net.b(F.silu(net.a(x)[:, 4:]) * net.a(x)[:, :4]), a=Linear(3, 8), b=Linear(4, 2)),
         ROWS, ("scale 4: a.weight a.bias > b.weight", "permute 4: a.weight a.bias > b.weight")),
    Case("wavenet", lambda: two(lambda net, x: net.b(net.a(x).sigmoid() * net.g(x).tanh())), ROWS,
         ("permute 4: a.weight a.bias g.weight g.bias > b.weight", "flip 4: g.weight g.bias > b.weight")),
    Case("tanh_gate", lambda: two(lambda net, x: net.b(net.a(x).tanh() * net.g(x).tanh())), ROWS,
         ("permute 4: a.weight a.bias g.weight g.bias > b.weight", "flip 4: g.weight g.bias > b.weight")),
    Case("gate_added", lambda: two(lambda net, x: (lambda a, g: net.b(a * g + a))(net.a(x), net.g(x))), ROWS,
         ("permute 4: a.weight a.bias g.weight g.bias > b.weight",)),
    Case("gated_added", lambda: two(lambda net, x: (lambda a, g: net.b(a * g + g))(net.a(x), net.g(x))), ROWS,
         ("permute 4: a.weight a.bias g.weight g.bias > b.weight", "scale 4: g.weight g.bias > b.weight")),
]  # fmt: skip

OUTPUTS = [
    Case("dict", lambda: two(lambda net, x: {"y": net.b(net.g(x)), "h": [(net.a(x),)]}), ROWS,
         ("gl 4: g.weight g.bias > b.weight",), "outputs of the model"),
    Case("dataclass", lambda: two(lambda net, x: Pair(net.b(net.g(x)), net.a(x))), ROWS,
         ("gl 4: g.weight g.bias > b.weight",), "outputs of the model"),
    Case("dataclass_of_the_units", lambda: two(lambda net, x: (lambda h: Pair(net.b(h), h))(net.a(x))), ROWS, (),
         "outputs of the model"),
    Case("keywords", lambda: two(lambda net, x, more: net.b(net.a(x) + net.g(more))),
         lambda: {"x": ROWS(), "more": ROWS()}, ("gl 4: a.weight a.bias g.weight g.bias > b.weight",)),
]  # fmt: skip


class Centred(nn.Module):
    """Subtracts a running mean, which is still zero."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, h: Tensor) -> Tensor:
        return h - self.mean


def with_hook() -> nn.Module:
    """A hook that nobody sees in the modules takes the sigmoid of what a layer returns."""
    model = chain(Linear(3, 4), nn.Identity(), Linear(4, 2))
    model[0].register_forward_hook(lambda module, args, output: output.sigmoid())
    return model


def one(function, *shape: int) -> Net:
    """A parameter w, and a layer b that reads four units."""
    return Net(function, w=weight(*shape), b=Linear(4, 2))


def guarded(guard) -> nn.Module:
    """Two layers, the first of which runs under a context."""

    def function(net: Net, x: Tensor) -> Tensor:
        with guard():
            h = net.a(x).relu()
        return net.b(h)

    return Net(function, a=Linear(3, 4), b=Linear(4, 2))


FIRST = ("scale 4: a.weight a.bias > b.weight", "permute 4: a.weight a.bias > b.weight")
SHARED = "depend on 'w', which linear in 'model' (Net) and"

PARAMETERS = [
    Case("half_a_weight", lambda: one(lambda net, x: net.b(F.linear(x, net.w * 0.5).relu()), 4, 3), ROWS,
         ("scale 4: w > b.weight", "permute 4: w > b.weight")),
    Case("weight_times_parameter",
         lambda: Net(lambda net, x: net.b(F.linear(x, net.w * net.t)), w=weight(4, 3), t=weight(1), b=Linear(4, 2)),
         ROWS, (), "is used by mul in 'model' (Net), on which no group acts"),
    Case("temperature",
         lambda: Net(lambda net, x: net.b(net.a(x) * net.t), a=Linear(3, 4), t=weight(1), b=Linear(4, 2)),
         ROWS, ("gl 4: a.weight a.bias > b.weight",), "mul in 'model' (Net), on which no group acts"),
    Case("merged_adapter",
         lambda: Net(lambda net, x: F.linear(x, net.w + net.up @ net.down), w=weight(4, 3), up=weight(4, 2),
                     down=weight(2, 3)),
         ROWS, ("gl 2: down > up",), "add in 'model' (Net), on which no group acts"),
    Case("product_of_factors",
         lambda: Net(lambda net, x: net.c(F.linear(x, net.u @ net.v.mT)), u=weight(4, 2), v=weight(3, 2),
                     c=Linear(4, 2)),
         ROWS, ("gl 2: v > u",), "outputs of the model"),
    Case("negative_elsewhere",
         lambda: one(lambda net, x: net.b(F.linear(x, net.w)) + net.b(F.linear(x, -net.w).tanh()), 4, 3),
         ROWS, (), f"{SHARED} neg in 'model' (Net) share"),
    Case("transposed_elsewhere", lambda: Net(lambda net, x: F.linear(F.linear(x, net.w), net.w.T), w=weight(4, 3)),
         ROWS, (), f"{SHARED} linear in 'model' (Net) share"),
    Case("repeated", lambda: one(lambda net, x: (lambda h: net.b(h[:, :4].tanh() + h[:, 4:]))(
        F.linear(x, net.w.repeat(2, 1))), 4, 3), ROWS, ("flip 4: w > b.weight",), "irregularly in 'w'"),
    Case("overlapping", lambda: one(lambda net, x: net.b(F.linear(x, net.w[:4]) + F.linear(x, net.w[1:])), 5, 3),
         ROWS, (), f"{SHARED} linear in 'model' (Net) share"),
    Case("apart", lambda: one(lambda net, x: net.b(F.linear(x, net.w[:4]) + F.linear(x, net.w[4:])), 8, 3),
         ROWS, ("gl 4: w w > b.weight",)),
    Case("bias_that_moves",
         lambda: Net(lambda net, x: net.b(F.linear(x, net.w, net.a(x)[0])) + net.b(net.a(x)),
                     w=weight(4, 3), a=Linear(3, 4), b=Linear(4, 2)),
         ROWS, ("gl 4: w a.weight a.bias > b.weight",)),
    Case("scale_that_moves",
         lambda: two(lambda net, x: net.b(F.layer_norm(net.a(x), (4,), net.g(x)[0])) + net.b(net.g(x))),
         ROWS, (), "layer_norm"),
    Case("renormalized_table", lambda: chain(nn.Embedding(7, 4, max_norm=1.0), Linear(4, 2)), tokens, (),
         "embedding_renorm in '0' (Embedding)"),
    Case("buffer_of_zeros", lambda: chain(Linear(3, 4), Centred(), Linear(4, 2)), ROWS, (), "in '1' (Centred)"),
    Case("hook", with_hook, ROWS, hidden("permute"), "sigmoid"),
    Case("no_grad", lambda: guarded(torch.no_grad), ROWS, FIRST),
    Case("autocast", lambda: guarded(lambda: torch.autocast("cpu", enabled=False)), ROWS, FIRST),
    Case("checkpoint",
         lambda: Net(lambda net, x: net.b(checkpoint(lambda z: net.a(z).relu(), x, use_reentrant=False)),
                     a=Linear(3, 4), b=Linear(4, 3)),
         ROWS, FIRST),
    Case("cond",
         lambda: two(lambda net, x: net.b(torch.cond(x.sum() > 0, torch.relu, torch.tanh, (net.a(x),)))), ROWS, (),
         "cond"),
]  # fmt: skip

CASES = LAYERS + IMAGES + NORMS + STREAMS + GATES + OUTPUTS + PARAMETERS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sites_are_those_counted_by_hand(case: Case) -> None:
    assert sorted(map(described, found(case).sites)) == case.expected
    assert any(case.refusal in refusal.reason for refusal in found(case).refusals)


@pytest.mark.parametrize("case", [case for case in CASES if case.sites], ids=str)
def test_no_site_moves_the_outputs(case: Case) -> None:
    worst = drifts(case.model(), case.inputs(), found(case).sites)
    assert max(worst.values()) <= 1e-10, worst


def test_what_is_found_is_checked_on_numbers() -> None:
    case = next(case for case in CASES if case.name == "stream")
    assert sorted(map(described, find_symmetries(case.model(), case.inputs()).sites)) == case.expected


def test_a_wrong_meaning_is_caught_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HANDLERS, "gelu", pointwise.homogeneous)
    case = next(case for case in CASES if case.name == "gelu")
    model, inputs = case.model(), case.inputs()
    wrong = find_symmetries(model, inputs, check=False)
    assert {described(site).partition(":")[0] for site in wrong.sites} == {"scale 4", "permute 4"}
    assert drifts(model, inputs, wrong.sites)["0"] > 1e-3
    checked = find_symmetries(model, inputs)
    assert list(map(described, checked.sites)) == ["permute 4: 0.bias 0.weight > 2.weight"]
    refusal = checked.refusals[-1]
    assert refusal.parameters == ("0.weight", "0.bias", "2.weight")
    assert refusal.reason.startswith("'0' moves the outputs by") and refusal.reason.endswith("not a symmetry")


def test_frozen_parameters_stay() -> None:
    model = chain(Linear(3, 4), Linear(4, 5), Linear(5, 2))
    model[2].weight.requires_grad_(False)
    symmetry = find_symmetries(model, ROWS())
    assert list(map(described, symmetry.sites)) == ["gl 4: 0.bias 0.weight > 1.weight"]
    assert "makes units that depend on '2.weight', which is frozen" in {r.reason for r in symmetry.refusals}


def test_the_model_is_left_as_it_is() -> None:
    model = chain(Conv(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), Conv(4, 2, 3)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    assert find_symmetries(model, IMAGE()).sites
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and model[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
