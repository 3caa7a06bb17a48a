"""What lies between two linear layers decides which groups act there. None of what is found moves the outputs."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from detection.drift import drifts
from detection.nets import GROUPS, Case, Net, found, normal
from torch import Tensor, nn

from meta_teleport.operations.pointwise import _is_odd, pointwise
from meta_teleport.operations.values import HANDLERS

Function = Callable[..., Tensor]


def shifted(h: Tensor) -> Tensor:
    """Half of the units of every place, and half of those of the place before."""
    return torch.cat([h[..., :2], h[..., 2:].roll(1, -2)], -1)


def rotary(h: Tensor) -> Tensor:
    turned = torch.cat([-h[..., 2:], h[..., :2]], -1)
    return h * 0.6 + turned * 0.8


def written(write: Callable[[Tensor], object]) -> Function:
    """A view is taken, the tensor is written over, the view is read."""

    def function(h: Tensor) -> Tensor:
        view = h.view_as(h)
        write(h)
        return view

    return function


GL4, BOTH, SCALE, PERMUTE, NONE = "gl 4", "permute 4, scale 4", "scale 4", "permute 4", ""
FLIP, SIGNS = "flip 4", "flip 4, permute 4"

# h: (2, 5, 4): four units at five places of two sequences
FUNCTIONS: dict[str, tuple[Function, str]] = {
    "negative": (lambda h: -2.0 * h, GL4),
    "twice": (lambda h: h + h, GL4),
    "shape": (lambda h: h * h.shape[0], GL4),
    "over_places": (lambda h: h - h.mean(1, keepdim=True), GL4),
    "roll_of_places": (lambda h: h + h.roll(1, 1), GL4),
    "flip_of_places": (lambda h: h + h.flip(1), GL4),
    "scale_by_place": (lambda h: h * torch.arange(1.0, 6.0).to(h)[:, None], GL4),
    "weights_on_places": (lambda h: torch.ones(5, 5).to(h).tril() @ h, GL4),
    "einsum_over_places": (lambda h: torch.einsum("st,bti->bsi", torch.ones(5, 5).to(h).tril(), h), GL4),
    "attention_without_units": (lambda h: F.scaled_dot_product_attention(z := torch.ones(2, 5, 3).to(h), z, h), GL4),
    "float32": (lambda h: h.to(h.dtype).contiguous().clone(), GL4),
    "no_dropout": (lambda h: F.dropout(h, 0.5, training=False) * 1.0, SCALE),
    "abs": (torch.abs, BOTH),
    "relu_of_a_view": (written(torch.relu_), BOTH),
    "threshold_at_zero": (lambda h: F.threshold(h, 0.0, 0.0), BOTH),
    "clamp_at_zero": (lambda h: h.clamp(min=0), BOTH),
    "adaptive_max_over_places": (lambda h: F.adaptive_max_pool1d(h.mT, 5).mT, BOTH),
    "masked_places": (lambda h: h.masked_fill(torch.arange(5)[:, None] > 2, 0.0), BOTH),
    "max_over_places": (lambda h: F.max_pool1d(h.mT, 3, 1, 1).mT, BOTH),
    "scale_by_unit": (lambda h: h * torch.arange(1.0, 5.0).to(h), SCALE),
    "scale_by_pair": (
        lambda h: (h.unflatten(-1, (2, 2)) * torch.tensor([[1.0], [2.0]]).to(h)).flatten(-2),
        "gl 2",
    ),
    "masked_units": (lambda h: h.masked_fill(torch.tensor([True, False, False, False]), 0.0), SCALE),
    "random_mask": (lambda h: h * torch.bernoulli(torch.full((2, 5, 4), 0.5).to(h)), SCALE),
    "dropout": (lambda h: F.dropout(h, 0.5), SCALE),
    "skewed_places": (lambda h: h[:, :4].reshape(2, 16)[:, ::5], "gl 1"),
    "square_root": (lambda h: h.abs().sqrt(), PERMUTE),
    "softplus": (F.softplus, PERMUTE),
    "clamp_elsewhere": (lambda h: h.clamp(min=-1), PERMUTE),
    "clamp": (lambda h: h.clamp(-1, 1), SIGNS),
    "clamp_unevenly": (lambda h: h.clamp(-1, 0.5), PERMUTE),
    "tanh": (torch.tanh, SIGNS),
    "asinh": (torch.asinh, SIGNS),
    "tanhshrink": (F.tanhshrink, SIGNS),
    "symmetric_hardtanh": (F.hardtanh, SIGNS),
    "hardtanh_by_keyword": (lambda h: torch.ops.aten.hardtanh(h, min_val=-0.5), PERMUTE),
    "cube": (lambda h: h**3, SIGNS),
    "tanh_of_dropout": (lambda h: F.dropout(h, 0.5).tanh(), FLIP),
    "tanh_of_each": (lambda h: (h * torch.arange(1.0, 5.0).to(h)).tanh(), FLIP),
    "tanh_of_masked_units": (lambda h: h.masked_fill(torch.tensor([True, False, False, False]), 0.0).tanh(), FLIP),
    "tanh_of_rotary": (lambda h: rotary(h).tanh(), "flip 2"),
    "mean_of_tanh": (lambda h: h + h.tanh().mean(1, keepdim=True), SIGNS),
    "relu_of_tanh": (lambda h: h.tanh().relu(), PERMUTE),
    "tanh_of_abs": (lambda h: h.abs().tanh(), PERMUTE),
    "largest_tanh": (lambda h: F.max_pool1d(h.tanh().mT, 3, 1, 1).mT, PERMUTE),
    "tanh_plus_one": (lambda h: h.tanh() + 1.0, PERMUTE),
    "tanh_plus_numbers": (lambda h: h.tanh() + torch.arange(4.0).to(h), NONE),
    "tanh_and_sigmoid": (lambda h: h.tanh() + h.sigmoid(), PERMUTE),
    "tanh_times_sigmoid": (lambda h: h.tanh() * h.sigmoid(), PERMUTE),
    "softmax_of_tanh": (lambda h: h.tanh().softmax(-1), PERMUTE),
    "hardtanh": (lambda h: F.hardtanh(h, 0.0, 1e9), PERMUTE),
    "threshold_elsewhere": (lambda h: F.threshold(h, 0.1, 0.0), PERMUTE),
    "threshold_to_a_number": (lambda h: F.threshold(h, 0.0, 0.3), PERMUTE),
    "square": (lambda h: h * h, PERMUTE),
    "gate_of_itself": (lambda h: h * h.detach().sigmoid(), PERMUTE),
    "plus_one": (lambda h: h + 1.0, PERMUTE),
    "sigmoid_of_a_view": (written(torch.sigmoid_), PERMUTE),
    "one_added_to_a_view": (written(lambda h: h.add_(1.0)), PERMUTE),
    "halves_added": (lambda h: (h[..., :2] + h[..., 2:]).repeat(1, 1, 2), "gl 2"),
    "halves_turned": (lambda h: torch.cat([-h[..., 2:], h[..., :2]], -1), "gl 2, gl 2"),
    "shifted_units": (shifted, "gl 2, gl 2"),
    "glu": (lambda h: F.glu(h).repeat(1, 1, 2), "permute 2, scale 2"),
    "places_and_units_exchanged": (lambda h: h.mT.reshape(2, 5, 4), "gl 1"),
    "rows_crossed": (lambda h: torch.stack([h[..., ::3], h[..., 1:3].flip(-1)], 1).flatten(-2), "gl 1"),
    "integers": (lambda h: h.int().to(h), NONE),
    "plus_numbers": (lambda h: h + torch.arange(4.0).to(h), NONE),
    "centred": (lambda h: h - h.mean(-1, keepdim=True), NONE),
    "softmax": (lambda h: h.softmax(-1), PERMUTE),
    "softmax_over_places": (lambda h: h.softmax(1), NONE),
    "normalized": (lambda h: F.normalize(h, dim=-1), FLIP),
    "normalized_over_places": (lambda h: F.normalize(h, dim=1), NONE),
    "instance_norm": (lambda h: F.instance_norm(h.mT).mT, PERMUTE),
    "local_response_norm": (lambda h: F.local_response_norm(h.mT, 2).mT, NONE),
    "sort": (lambda h: h.sort(-1)[0], NONE),
    "top": (lambda h: h.topk(4, -1)[0], NONE),
    "cumulated": (lambda h: h.cumsum(-1), NONE),
    "maxout": (lambda h: h.view(2, 5, 2, 2).amax(-1).repeat(1, 1, 2), NONE),
    "largest_over_places": (lambda h: h.amax(1, keepdim=True).expand(2, 5, 4), BOTH),
    "least_over_places": (lambda h: h.amin(1, keepdim=True).expand(2, 5, 4), BOTH),
    "maximum_of_halves": (lambda h: torch.maximum(h[..., :2], h[..., 2:]).repeat(1, 1, 2), "permute 2, scale 2"),
    "minimum_of_halves": (lambda h: torch.minimum(h[..., :2], h[..., 2:]).repeat(1, 1, 2), "permute 2, scale 2"),
    "maximum_and_zero": (lambda h: torch.maximum(h, torch.tensor(0.0)), BOTH),
    "maximum_and_one": (lambda h: torch.max(h, torch.tensor(1.0)), PERMUTE),
    "maximum_and_numbers": (lambda h: torch.maximum(h, torch.arange(4.0).to(h)), NONE),
    "maximum_of_other_places": (lambda h: torch.max(h, h.flip(1)), BOTH),
    "maximum_of_other_units": (lambda h: torch.max(h, h.flip(-1)), NONE),
    "largest_and_where_it_stands": (lambda h: h.max(1, keepdim=True)[0].expand(2, 5, 4), BOTH),
    "places_of_the_largest": (lambda h: h.max(1, keepdim=True)[1].to(h) + h, NONE),
    "product_added": (lambda h: torch.addcmul(h, h, torch.ones(()).to(h)), GL4),
    "square_added": (lambda h: torch.addcmul(h, h, h, value=0.5), PERMUTE),
    "quotient_added": (lambda h: torch.addcdiv(h, torch.ones(()).to(h), h), NONE),
    "leaky_relu_by_hand": (lambda h: torch.where(h > 0, h, 0.1 * h), BOTH),
    "leaky_relu_by_slopes": (lambda h: h * torch.where(h >= 0, 1.0, 0.1), BOTH),
    "signs_alone": (lambda h: (h > 0).to(h), PERMUTE),
    "signs_times_units": (lambda h: h * (h > 0), BOTH),
    "signs_of_other_units": (lambda h: h.masked_fill(h.flip(-1) > 0, 0.0), SCALE),
    "signs_of_one_unit": (lambda h: h.masked_fill(h[..., :1] > 0, 0.0), "scale 1, scale 3"),
    "signs_choose_numbers": (lambda h: torch.where(h > 0, torch.arange(4.0).to(h), 0.0), NONE),
    "signs_of_units_choose_numbers": (lambda h: h + torch.where(h > 0, torch.ones(5, 4).to(h), 0.0), NONE),
    "compared_elsewhere": (lambda h: h * (h > 0.1), NONE),
    "chosen_places": (lambda h: torch.where(torch.arange(5)[:, None] > 2, h, 0.0), GL4),
    "chosen_units": (lambda h: torch.where(torch.arange(4) > 1, h, 0.0), SCALE),
    "chosen_of_two": (lambda h: torch.where(torch.arange(5)[:, None] > 2, h, -h), GL4),
    "chosen_or_one": (lambda h: torch.where(torch.arange(5)[:, None] > 2, h, 1.0), PERMUTE),
    "chosen_or_numbers": (lambda h: torch.where(torch.arange(5)[:, None] > 2, h, torch.arange(4.0).to(h)), NONE),
    "zeros_pooled": (lambda h: F.max_pool1d(F.pad(h.mT, (1, 1)), 3, 1).mT, BOTH),
    "zeros_averaged": (lambda h: F.avg_pool1d(F.pad(h.mT, (1, 1)), 3, 1).mT, GL4),
    "minus_infinity_pooled": (lambda h: F.max_pool1d(F.pad(h.mT, (1, 1), value=-torch.inf), 3, 1).mT, BOTH),
    "ones_pooled": (lambda h: F.max_pool1d(F.pad(h.mT, (1, 1), value=1.0), 3, 1).mT, PERMUTE),
    "units_padded_and_pooled": (lambda h: F.avg_pool1d(F.pad(h, (1, 1)), 3, 1), NONE),
    "largest": (lambda h: h.max(-1, keepdim=True)[0].expand(2, 5, 4), NONE),
    "where": (lambda h: torch.where(h > 0.1, h, torch.zeros_like(h)), NONE),
    "indexed": (lambda h: h[..., [1, 0, 3, 2]], GL4),
    "indexed_twice": (lambda h: h[..., [0, 0, 1, 1, 2, 2]], "gl 3"),
    "indexed_unevenly": (lambda h: h[..., [0, 0, 1, 2]], NONE),
    "indexed_places": (lambda h: h[:, [1, 0, 3, 2, 2]], GL4),
    "indexed_places_and_batch": (lambda h: h[torch.tensor([[1], [0]]), torch.tensor([0, 3, 1])], GL4),
    "places_indexed_by_units": (lambda h: h[:, h[0, :, 0].argsort()], "gl 3"),
    "indexed_along_two_axes": (lambda h: h[:, [0, 1, 2, 3], [0, 1, 2, 3]][..., None].expand(2, 4, 4), NONE),
    "indexed_by_numbers": (lambda h: h[..., h.argsort(-1)[0, 0]], NONE),
    "gathered": (lambda h: h.gather(-1, torch.tensor([0, 1, 1, 3]).expand(2, 5, 4)), NONE),
    "clamped_by_units": (lambda h: torch.clamp(h, max=h.flip(1)), NONE),
    "adaptive_max_of_units": (lambda h: F.adaptive_max_pool1d(h, 4), NONE),
    "einsum_of_diagonals": (lambda h: torch.einsum("bti,bti->bti", h, h), PERMUTE),
    "einsum_of_units": (lambda h: torch.einsum("bti,bti->bt", h, h)[..., None].expand(2, 5, 4), NONE),
    "einsum_of_one": (lambda h: torch.einsum("bti->bi", h)[:, None].expand(2, 5, 4), NONE),
    "strided": (lambda h: h.as_strided((2, 5, 4), (20, 4, 1)), NONE),
    "diagonal": (lambda h: h[:, :4].diagonal(dim1=1, dim2=2), NONE),
    "rotated_by_a_quarter": (lambda h: h[:, :4].rot90(1, (1, 2)), NONE),
    "rolled_as_one_line": (lambda h: h.roll(1), NONE),
    "units_rolled_and_added": (lambda h: h + h.roll(1, -1), "scale 1"),
    "rotary": (rotary, "scale 2"),
    "plus_zeros": (lambda h: h + torch.zeros_like(h), GL4),
    "zeros_written_through_a_view": (lambda h: (z := torch.zeros_like(h), z[..., 0].fill_(1.0), h + z)[2], NONE),
    "beside_zeros": (lambda h: torch.cat([h, torch.zeros_like(h)], -1), GL4),
    "beside_ones": (lambda h: torch.cat([h, torch.ones_like(h)], -1), GL4),
    "triangle": (lambda h: h.tril(), NONE),
    "pooled_units": (lambda h: F.avg_pool1d(h, 2).repeat(1, 1, 2), NONE),
    "pooled_units_same_size": (lambda h: F.avg_pool1d(h, 3, 1, 1), NONE),
    "max_of_units_same_size": (lambda h: F.max_pool1d(h, 3, 1, 1), NONE),
    "interpolated_units": (lambda h: F.interpolate(h, size=4, mode="linear"), NONE),
    "constant_matrix": (lambda h: h @ torch.eye(4).to(h).roll(1, 0), NONE),
    "einsum_with_numbers": (lambda h: torch.einsum("bti,ij->btj", h, torch.eye(4).to(h)), NONE),
    "attention_over_units": (
        lambda h: F.scaled_dot_product_attention(z := torch.ones(2, 4, 4).to(h), z, h.mT).mT,
        NONE,
    ),
    "gram_of_places": (lambda h: h.mT @ h, NONE),
    "fourier": (lambda h: torch.fft.rfft(h, dim=-1).abs().repeat(1, 1, 2)[..., :4], NONE),
    "complex": (lambda h: torch.view_as_real(torch.view_as_complex(h.view(2, 5, 2, 2)) * 1j).reshape(2, 5, 4), NONE),
    "bits": (lambda h: h.view(torch.int16).view(h.dtype), NONE),
    "cross": (lambda h: torch.cross(h[..., :3], h[..., 1:], dim=-1).repeat(1, 1, 2)[..., :4], NONE),
    "standardized": (lambda h: h / h.std(), NONE),
    "rounded": (torch.round, NONE),
    "zero_in_one_unit": (lambda h: (h[..., 0].zero_(), h)[1], NONE),
    "five_in_one_unit": (lambda h: (h[..., 0].fill_(5.0), h)[1], NONE),
    "one_unit_from_elsewhere": (lambda h: (h[..., 0].copy_(torch.ones(2, 5)), h)[1], NONE),
    "numbers_times_a_view": (lambda h: (z := torch.ones_like(h), z.view(-1).mul_(h.view(-1)), z)[2], NONE),
}


def between(function: Function) -> nn.Module:
    """The function between a linear layer of four units and one that reads as many units as it returns."""
    width = function(torch.randn(2, 5, 4)).shape[-1]
    return Net(lambda net, x: net.b(function(net.a(x))), a=nn.Linear(3, 4), b=nn.Linear(width, 2))


CASES = [
    Case(name, lambda function=function: between(function), normal(2, 5, 3), (groups,))
    for name, (function, groups) in FUNCTIONS.items()
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_groups_between_linear_layers(case: Case) -> None:
    sites = found(case).sites
    assert ", ".join(sorted(f"{GROUPS[type(site.group)]} {site.group.k}" for site in sites)) == case.sites[0]
    worst = drifts(case.model(), case.inputs(), sites, trials=5) if sites else {}
    assert all(drift <= 1e-10 for drift in worst.values()), worst
    assert bool(found(case).refusals)


@pytest.mark.parametrize("name", sorted(name for name, handler in HANDLERS.items() if handler is pointwise))
def test_functions_are_taken_for_odd_if_they_are(name: str) -> None:
    function = getattr(torch, name, None) or getattr(F, name.replace("log_sigmoid", "logsigmoid"))
    z = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for exponent in (2, 3) if name == "pow" else (None,):
        numbers = () if exponent is None else (exponent,)
        odd = torch.allclose(function(-z, *numbers), -function(z, *numbers), rtol=1e-14, atol=0)
        assert _is_odd(name, numbers) == odd
