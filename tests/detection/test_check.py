"""The check on numbers: it passes what is a symmetry and finds what is none."""

import copy
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from detection.drift import drifts
from detection.nets import Net, chain, normal
from torch import nn
from torch.nn.utils import prune

from meta_teleport.detection.check import Check, tried, verify
from meta_teleport.detection.detect import find_symmetries
from meta_teleport.errors import UserError
from meta_teleport.symmetry.groups import GL, Permutation, PositiveScaling
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.tracing.trace import given

ROWS = normal(5, 3)


def site(group, below: str, above: str, k: int = 4, d: int = 3, m: int = 4) -> Site:
    """A site between two layers of a chain, true or not."""
    made = (View.along(f"{below}.weight", (k, d), 0), View.along(f"{below}.bias", (k,), 0))
    return Site(below, group(k), made, (View.along(f"{above}.weight", (m, k), 1),))


def insist(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if x.dtype != dtype:
        raise TypeError(f"{x.dtype} is not what this code is for")
    return x


def checked(model: nn.Module, dtype: torch.dtype = torch.float32) -> Check:
    setting = given(model, ROWS().to(dtype))
    return Check(model, tried([setting], [setting]))


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    return chain(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


TRUE = [site(PositiveScaling, "0", "2"), site(Permutation, "2", "4", d=4), site(PositiveScaling, "4", "6", d=4)]
FALSE = [site(GL, "0", "2"), site(PositiveScaling, "2", "4", d=4), site(PositiveScaling, "0", "4")]


def test_symmetries_pass(generator: torch.Generator) -> None:
    assert verify(deep(), Symmetry(tuple(TRUE)), ROWS(), trials=20, generator=generator) <= 1e-12


def test_layers_that_begin_alike_are_told_apart() -> None:
    model = chain(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.eye(3))
    near = checked(model).params
    assert not torch.allclose(near["0.weight"], near["2.weight"])


@pytest.mark.parametrize("false", FALSE, ids=("mixed_through_relu", "scaled_through_tanh", "wrong_reader"))
def test_what_is_no_symmetry_moves_the_outputs(false: Site) -> None:
    assert verify(deep(), Symmetry((false,)), ROWS()) > 1e-3


def test_the_false_sites_among_true_ones_are_found(generator: torch.Generator) -> None:
    sites = [TRUE[0], FALSE[1], TRUE[1], TRUE[2], FALSE[0]]
    false = checked(deep()).false_sites(sites, generator)
    assert sorted(false) == [1, 4] and min(false.values()) > 1e-3
    assert checked(deep()).false_sites(TRUE, generator) == {}


@pytest.mark.parametrize("training", [False, True])
def test_both_modes_are_tried(training: bool) -> None:
    model = chain(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 4)).train(training)
    assert verify(model, Symmetry((site(Permutation, "0", "2"),)), ROWS()) > 1e-3
    assert verify(model, Symmetry((site(PositiveScaling, "0", "2"),)), ROWS()) <= 1e-12
    assert model.training is training


def test_zeros_and_ones_hide_nothing() -> None:
    model = chain(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 4))
    nn.init.zeros_(model[3].weight)
    scaled = Site("1", PositiveScaling(4), (View.along("1.weight", (4,), 0), View.along("1.bias", (4,), 0)),
                  (View.along("3.weight", (4, 4), 1),))  # fmt: skip
    assert verify(model, Symmetry((scaled,)), ROWS()) > 1e-3


def test_a_batch_of_one_is_tried_in_evaluation_only() -> None:
    model = chain(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    assert [found.name for found in find_symmetries(model, ROWS()[:1]).sites] == ["0 permutation", "1"]


def test_code_that_insists_on_float32_is_tried_in_float32() -> None:
    model = Net(lambda net, x: net.b(net.a(insist(x, torch.float32))), a=nn.Linear(3, 4), b=nn.Linear(4, 4))
    assert checked(model).like.dtype == torch.float32
    assert 0 < verify(model, find_symmetries(model, ROWS()), ROWS()) <= 1e-5


@pytest.mark.parametrize(("dtype", "true", "false"), [(torch.float64, 1e-10, 1e-7), (torch.float32, 1e-5, 1e-2)])
def test_sites_may_move_the_outputs_by_rounding_but_not_by_a_hundred_times_that(
    dtype: torch.dtype, true: float, false: float, generator: torch.Generator
) -> None:
    """Rounding is 1e-9 at most in float64, 1e-4 in float32. A small part of tanh, at inputs near 1, moves the outputs
    by a tenth of itself or so."""
    for part, found in ((true, []), (false, [0])):
        model = Net(
            lambda net, x, part=part: net.b(net.a(insist(x, dtype)).relu() + part * net.a(x).tanh()),
            a=nn.Linear(3, 4), b=nn.Linear(4, 4),
        ).to(dtype)  # fmt: skip
        check = checked(model, dtype)
        assert check.like.dtype == dtype
        assert sorted(check.false_sites([site(PositiveScaling, "a", "b")], generator)) == found


def test_inputs_that_do_not_run() -> None:
    with pytest.raises(UserError, match="the model does not run on the example inputs"):
        verify(deep(), Symmetry(tuple(TRUE)), torch.ones(2, 7))
    with pytest.raises(UserError, match="the model does not run on the example inputs: Expected more than 1 value"):
        verify(chain(nn.Linear(3, 4), nn.BatchNorm1d(4)), Symmetry(()), ROWS()[:1])


def verified(model: nn.Module, x: torch.Tensor) -> float:
    return verify(model, Symmetry(tuple(TRUE)), x)


@pytest.mark.parametrize("look", [verified, find_symmetries])
def test_outputs_that_are_not_numbers(look: Callable[[nn.Module, torch.Tensor], object]) -> None:
    message = (
        r"the model's outputs are not numbers on the example inputs \(in training\): give inputs on which they are"
    )
    with pytest.raises(UserError, match=message):
        look(deep(), ROWS().log())
    spoilt = deep()
    spoilt[2].weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=message):
        look(spoilt, ROWS())


def test_the_mode_whose_outputs_are_not_numbers_is_named() -> None:
    model = chain(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].running_var.fill_(torch.nan)
    with pytest.raises(UserError, match=r"\(in evaluation\)"):
        verify(model, Symmetry((site(GL, "0", "2", m=2),)), ROWS())


def test_outputs_that_are_numbers_at_the_weights_of_the_model_alone() -> None:
    """Weights near by give nan here, so the check is made at the model's own; a false site is still seen."""
    model = Net(
        lambda net, x: net.b(net.a(x)) + (net.c - 1).sqrt().sum(),
        a=nn.Linear(3, 4), b=nn.Linear(4, 4), c=torch.ones(9),
    )  # fmt: skip
    whole = Symmetry.manual(model, {"pair": ("gl", ["a.weight", "a.bias"], ["b.weight"])})
    half = Symmetry.manual(model, {"pair": ("gl", ["a.weight"], ["b.weight"])})
    assert verify(model, whole, ROWS()) <= 1e-12
    assert verify(model, half, ROWS()) > 1e-3


@pytest.mark.parametrize("k", [1, 2, 3, 8])
@pytest.mark.parametrize("blocks", [(), (3,)])
@pytest.mark.parametrize("group", [GL, PositiveScaling, Permutation])
def test_random_elements_are_not_near_the_identity(group, k: int, blocks: tuple[int, ...]) -> None:
    at = Site("s", group(k, blocks), (), ())
    check = checked(deep())
    one = group(k, blocks).identity(dtype=torch.float64)
    for seed in range(50):
        drawn = check.random_element(at, torch.Generator().manual_seed(seed))
        assert drawn.shape == one.shape
        if group is PositiveScaling:
            assert bool((drawn.log().abs() >= 0.25).all())
        elif group is Permutation:
            assert bool(((drawn != one).sum(-1) >= min(k, 2) * (k > 1)).all())
        else:
            assert float((drawn - one).norm(dim=(-2, -1)).min()) > 0.3


def constant(values: float) -> torch.Tensor:
    return torch.full((5, 3), values)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("group", [GL, Permutation])
def test_constant_inputs_hide_nothing(group, value: float) -> None:
    """The second factor is the same for all units on constant inputs: zero, or the sum of equal columns."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        spread = (x - x.mean(0, keepdim=True)).abs()
        return net.b(net.a(x) * torch.cat((1 + spread, 1 + spread[:, :1] ** 2), 1))

    model = Net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 4))
    setting = given(model, constant(value))
    check = Check(model, tried([setting], [setting]))
    assert list(check.false_sites([site(group, "a", "b")], torch.Generator().manual_seed(0))) == [0]
    assert verify(model, Symmetry((site(group, "a", "b"),)), constant(value)) > 1e-3


@pytest.mark.parametrize("width", range(2, 15))
def test_a_permutation_of_two_units_is_tried_by_their_exchange(width: int) -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        return net.b(torch.cat((net.a(x).relu(), net.c.expand(len(x), 2)), 1) * net.g)

    torch.manual_seed(width)
    model = Net(forward, a=nn.Linear(3, width), b=nn.Linear(width + 2, 2), c=torch.ones(2), g=torch.ones(width + 2))
    found = find_symmetries(model, ROWS())
    assert max(drifts(model, ROWS(), found.sites, 4).values()) <= 1e-10


def by_numpy(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.b(net.a(x) * (float(np.random.rand()) + random.random())) * net.rng.random()


def test_random_numbers_of_numpy_and_python_are_the_same_every_time_and_go_on_after() -> None:
    model = Net(by_numpy, a=nn.Linear(3, 4), b=nn.Linear(4, 4))
    model.rng = np.random.default_rng(3)
    before = np.random.get_state()[1].tolist(), random.getstate(), model.rng.bit_generator.state
    symmetry = find_symmetries(model, ROWS())
    assert [found.name for found in symmetry.sites] == ["a"]
    assert verify(model, symmetry, ROWS()) <= 1e-12
    assert (np.random.get_state()[1].tolist(), random.getstate(), model.rng.bit_generator.state) == before


def test_float32_inside_does_not_hide_true_sites_or_false_ones() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        h = net.a(x).to(torch.float32)
        scale = h.float().norm(dim=-1, keepdim=True, dtype=torch.float32) + torch.ones(1)
        return net.b(h.type_as(x).relu() + 1e-6 * h.to(x).tanh()) / (1 + 0 * scale)

    model = Net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 4)).double()
    check = checked(model, torch.float64)
    false = check.false_sites([site(PositiveScaling, "a", "b"), site(Permutation, "a", "b")], torch.Generator())
    assert check.lowest == torch.float64 and list(false) == [0]


def test_lower_precision_that_cannot_be_raised_lowers_the_tolerance() -> None:
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h: torch.Tensor) -> torch.Tensor:
            with torch._C.DisableTorchFunction():
                return h.to(torch.float32).to(h.dtype)

    model = Net(lambda net, x: net.b(Rounded.apply(net.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 4)).double()
    check = checked(model, torch.float64)
    assert check.lowest == torch.float32
    assert check.false_sites([site(GL, "a", "b")], torch.Generator()) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_models_that_write_into_their_inputs(dtype: torch.dtype) -> None:
    model = Net(lambda net, x: net.b(net.a(x.mul_(2))), a=nn.Linear(3, 4), b=nn.Linear(4, 4)).to(dtype)
    x = ROWS().to(dtype)
    kept = x.clone()
    symmetry = find_symmetries(model, x)
    assert [found.name for found in symmetry.sites] == ["a"]
    assert verify(model, symmetry, x) <= 1e-12
    assert torch.equal(x, kept)


def test_caches_that_are_handed_in_are_copied() -> None:
    def forward(net: Net, x: torch.Tensor, past: list) -> torch.Tensor:
        past.append(net.b(net.a(x)))
        return sum(past)

    model, past = Net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 4)), []
    assert verify(model, Symmetry((site(GL, "a", "b"),)), (ROWS(), past)) <= 1e-12
    assert past == []


def test_counters_and_kept_tensors_are_put_back() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        net.count += 1
        net.log.append(net.count)
        net.last = net.b(net.a(x) * net.count)
        return net.last

    model = Net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 4))
    model.count, model.log = 1, []
    assert verify(model, Symmetry((site(GL, "a", "b"),)), ROWS()) <= 1e-12
    assert find_symmetries(model, ROWS()).sites
    assert model.count == 1 and model.log == [] and not hasattr(model, "last")


def test_what_cannot_be_copied_is_checked_too() -> None:
    """Pruning keeps a weight that is computed."""
    model = chain(nn.Linear(3, 4), nn.Linear(4, 4))
    prune.random_unstructured(model[1], "weight", amount=2)
    model(ROWS())
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    assert verify(model, Symmetry(()), ROWS()) == 0.0
    find_symmetries(model, ROWS())


def complaining(net: Net, x: torch.Tensor) -> torch.Tensor:
    if len(x) != 5:
        warnings.warn("another size", stacklevel=2)
    return net.b(net.a(x).relu())


def test_what_a_model_says_of_sizes_that_are_only_tried_is_nobodys_to_read() -> None:
    model = Net(complaining, a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with pytest.warns(UserWarning, match="another size"):
        model(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert len(find_symmetries(model, ROWS()).sites) == 2
    assert not shown
