"""Permutations through BatchNorm, with its running statistics moved along."""

import copy
from functools import partial

import pytest
import torch
from detection.drift import drifts
from detection.nets import Net, chain, described, normal
from torch import Tensor, nn
from torch.func import functional_call

from meta_teleport.detection.check import verify
from meta_teleport.detection.detect import find_symmetries
from meta_teleport.errors import UserError
from meta_teleport.optimizers.ensemble import Ensemble, Moved
from meta_teleport.optimizers.teleported import TeleportedOptimizer
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry

Conv = nn.Conv2d
IMAGE = normal(3, 3, 6, 6)


def images() -> Tensor:
    return IMAGE().double()


STATISTICS = ("1.running_mean", "1.running_var")
HIDDEN = "permute 4: 0.bias 0.weight 1.bias 1.running_mean 1.running_var 1.weight > 3.weight"


def network() -> nn.Sequential:
    """Four channels between two convolutions, whose running statistics differ."""
    torch.manual_seed(0)
    model = chain(Conv(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), Conv(4, 2, 3)).double()
    for _ in range(3):
        model(torch.randn(5, 3, 6, 6).double() + 1)
    return model


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}


def lacking(site: Site, name: str) -> Symmetry:
    """The site as if it did not know of one tensor."""
    left = {name for name in site.parameters} - {name}
    return Symmetry((site.among(left),))


@pytest.mark.parametrize("training", [False, True])
def test_the_statistics_are_moved_and_what_they_become_too(training: bool) -> None:
    model = network().train(training)
    symmetry = find_symmetries(model, images())
    assert list(map(described, symmetry.sites)) == [HIDDEN]
    turn = torch.tensor([1, 2, 3, 0])
    moved = copy.deepcopy(model)
    moved.load_state_dict(symmetry.act(tensors(model), (turn,)), strict=False)
    assert not torch.allclose(moved[1].running_mean, model[1].running_mean)
    x = images()
    assert torch.allclose(moved(x), model(x), rtol=1e-12, atol=1e-12)
    for name in STATISTICS:
        after = moved.get_buffer(name)
        assert torch.allclose(after, model.get_buffer(name)[turn], rtol=1e-12, atol=0)
    assert torch.allclose(moved.eval()(x), model.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*STATISTICS, "1.weight", "1.bias", "0.weight"])
def test_a_site_that_lacks_one_of_them_is_none(name: str) -> None:
    model = network()
    (site,) = find_symmetries(model, images()).sites
    assert verify(model, Symmetry((site,)), images(), trials=3) <= 1e-12
    assert verify(model, lacking(site, name), images(), trials=3) > 1e-4


def test_statistics_at_their_start_hide_nothing() -> None:
    """All means are zero and all variances one: left behind, they look as if they were moved."""
    model = chain(Conv(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), Conv(4, 2, 3)).double().eval()
    (site,) = find_symmetries(model, images()).sites
    manual = Symmetry.manual(
        model, {"hidden": ("permutation", ["0.weight", "0.bias", "1.weight", "1.bias", *STATISTICS], ["3.weight"])}
    )
    assert set(manual.sites[0].parameters) == set(site.parameters)
    assert verify(model, manual, images(), trials=3) <= 1e-12
    for name in STATISTICS:
        half = Symmetry((manual.sites[0], lacking(manual.sites[0], name).sites[0]))
        assert verify(model, half, images(), trials=3) > 1e-4


def test_parameters_alone_are_not_enough() -> None:
    model = network()
    symmetry = find_symmetries(model, images())
    with pytest.raises(UserError, match=r"moves '1.running_mean', which is not given: .*named_buffers"):
        symmetry.act(dict(model.named_parameters()), (torch.arange(4),))


def test_gradients_move_without_the_buffers() -> None:
    model = network()
    (site,) = find_symmetries(model, images()).sites
    turn = torch.tensor([1, 2, 3, 0])
    x = images()

    def gradients(at: dict[str, Tensor]) -> dict[str, Tensor]:
        free = {name: at[name].clone().requires_grad_() for name, _ in model.named_parameters()}
        state = {name: t.clone() for name, t in at.items() if name not in free}
        functional_call(model, {**free, **state}, (x,)).square().sum().backward()
        return {name: p.grad for name, p in free.items()}

    before = tensors(model)
    expected = gradients(site.act(before, turn))
    for name, moved in site.transport(gradients(before), turn).items():
        assert torch.allclose(moved, expected[name], rtol=1e-9, atol=1e-12), name


def test_only_permutations_move_buffers() -> None:
    model = network()
    with pytest.raises(UserError, match=r"the model has no parameter '1.running_mean'"):
        Symmetry.manual(model, {"hidden": ("scaling", ["1.running_mean"], ["3.weight"])})
    symmetry = find_symmetries(model, images())
    with pytest.raises(UserError, match=r"'1.running_mean', which is not a parameter of the model"):
        symmetry.require_fit(chain(Conv(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), Conv(4, 2, 3)))


def test_a_teleported_optimizer_leaves_them_alone() -> None:
    model = network()
    model[2] = nn.ReLU()
    symmetry = find_symmetries(model, images())
    assert [described(site).partition(":")[0] for site in symmetry.sites] == ["permute 4", "scale 4"]
    optimizer = TeleportedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, symmetry, "balanced")
    before = {name: model.get_buffer(name).clone() for name in STATISTICS}
    assert optimizer.teleport().accepted
    assert all(torch.equal(model.get_buffer(name), buffer) for name, buffer in before.items())


def test_an_ensemble_moves_the_buffers_of_its_copies() -> None:
    settings = [partial(torch.optim.SGD, lr=0.1, momentum=0.9)]
    ensemble = Ensemble(network, (0, 1), settings, loss=lambda outputs, labels: outputs.square().flatten(1).mean(1))
    x, y = images(), torch.zeros(3)
    ensemble.step(x[None], y[None])
    symmetry = find_symmetries(network(), images())
    turn = torch.tensor([[1, 2, 3, 0], [3, 0, 1, 2]])

    def search(symmetry: Symmetry, params: dict[str, Tensor], loss: object, inputs: Tensor) -> Moved:
        return Moved(symmetry.act(params, (turn,)), torch.ones(2), (turn,))

    before, outputs = ensemble.state(), ensemble.outputs(x[None])
    jump = ensemble.teleport(0, symmetry, search, x, y)
    assert bool(jump.kept.all()) and torch.allclose(jump.before, jump.after, rtol=1e-12, atol=0)
    assert torch.allclose(ensemble.outputs(x[None]), outputs, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(ensemble.buffers["1.running_mean"], before["buffers.1.running_mean"])


def read_elsewhere(net: Net, x: Tensor) -> Tensor:
    return net.b(net.n(net.a(x)).relu()) + net.n.running_mean.view(1, 4, 1, 1)


def computed(net: Net, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.b(
        nn.functional.batch_norm(h, 2 * net.n.running_mean, net.n.running_var, net.n.weight, net.n.bias).relu()
    )


def twice(net: Net, x: Tensor) -> Tensor:
    return net.b(net.n(net.a(x)).relu()) + net.b(net.n(net.c(x)).tanh())


def between(function: object, **parts: nn.Module) -> Net:
    return Net(function, a=Conv(3, 4, 3), n=nn.BatchNorm2d(4), b=Conv(4, 4, 1), **parts)  # type: ignore[arg-type]


NAMES = "a.bias a.weight n.bias n.running_mean n.running_var n.weight"
SHARED = (f"permute 4: {NAMES.replace('a.weight', 'a.weight c.bias c.weight')} > b.weight",)
UNITS = ("scale 4: n.bias n.weight > b.weight",)
MORE = [
    (lambda: between(read_elsewhere), UNITS),
    (lambda: between(computed), UNITS),
    (lambda: between(twice, c=Conv(3, 4, 3)), SHARED),
    (lambda: between(lambda net, x: net.b(net.n(torch.cat([net.a(x)[:, :2], x[:, :2, 1:-1, 1:-1]], 1)))),
     ("permute 2: a.bias a.weight n.bias n.running_mean n.running_var n.weight > b.weight", *UNITS)),
    (lambda: chain(Conv(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.GELU(), Conv(4, 2, 3)),
     ("permute 4: 0.bias 0.weight 1.bias 1.weight > 3.weight",)),
    (lambda: chain(Conv(3, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.GELU(),
                   Conv(4, 2, 3)),
     (HIDDEN,)),
    (lambda: chain(Conv(3, 4, 1), nn.ZeroPad2d(1), nn.BatchNorm2d(4), nn.GELU(), Conv(4, 2, 3)),
     (HIDDEN.replace("1.", "2.").replace("3.", "4."),)),
    (lambda: chain(Conv(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 2)),
     (HIDDEN.replace("1.", "2.").replace("3.", "4."),)),
    (lambda: chain(Conv(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Hardswish(), Conv(4, 2, 1)),
     ("permute 4: 0.bias 0.weight 1.bias 1.weight 2.bias 2.running_mean 2.running_var 2.weight > 4.weight",
      "scale 4: 0.bias 0.weight > 1.weight")),
    (lambda: chain(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, groups=3), nn.GELU(), Conv(3, 2, 1)),
     ("scale 3: 0.bias 0.weight > 1.weight",)),
]  # fmt: skip


@pytest.mark.parametrize(("build", "sites"), MORE)
@pytest.mark.parametrize("training", [False, True])
def test_what_else_is_permuted_and_what_is_not(build, sites: tuple[str, ...], training: bool) -> None:
    torch.manual_seed(0)
    model = build().train(training)
    found = find_symmetries(model, IMAGE(), check=False).sites
    assert sorted(map(described, found)) == sorted(sites)
    worst = drifts(model, IMAGE(), found, trials=5)
    assert max(worst.values()) <= 1e-10, worst


def test_buffers_that_are_not_saved_are_not_moved() -> None:
    model = network()
    mean = model[1]._buffers.pop("running_mean")
    model[1].register_buffer("running_mean", mean, persistent=False)
    assert find_symmetries(model, images()).sites == ()
