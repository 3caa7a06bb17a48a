"""Rules as torch optimizers: the same steps as in meta-training, and what torch expects of an optimizer."""

import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any

import laws
import network_cases
import pytest
import torch
from network_cases import HEADS, LINEAR, NETWORKS, RELU, Network, parameters
from rule_cases import trained
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.errors import UserError
from meta_teleport.learned.lstm import LSTMUpdate
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.optimizers.learned_optimizer import LearnedOptimizer
from meta_teleport.optimizers.saved_states import embed, extract
from meta_teleport.params import Params
from meta_teleport.rules.classical import GradientDescent, Whitening
from meta_teleport.rules.rule import Rule, shapes_of
from meta_teleport.symmetry.groups import PositiveScaling
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.tasks.regression import Regression


def closure_of(network: Network, model: nn.Module, optimizer: Optimizer, seed: int) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = network_cases.loss(model, network.batch(seed))
        value.backward()
        return value

    return closure


def train(network: Network, model: nn.Module, optimizer: Optimizer, steps: range = range(6)) -> list[Tensor]:
    if isinstance(optimizer, LearnedOptimizer):
        return [optimizer.step(network_cases.loss(model, network.batch(seed))) for seed in steps]
    return [optimizer.step(closure_of(network, model, optimizer, seed)) for seed in steps]


def run(network: Network, make: Callable[[nn.Module], Optimizer], steps: int = 6) -> Params:
    model = network.build()
    train(network, model, make(model), range(steps))
    return stacked(model)


def stacked(model: nn.Module) -> Params:
    return {name: p.unsqueeze(0) for name, p in parameters(model).items()}


def of(rule: Rule, network: Network, **options: Any) -> Callable[[nn.Module], LearnedOptimizer]:
    return lambda model: rule.optimizer(model, symmetry=network.symmetry, **options)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_without_teleports_it_is_the_plain_optimizer(network: Network) -> None:
    sgd, adam = run(network, lambda m: SGD(m.parameters(), 0.1)), run(network, lambda m: Adam(m.parameters(), 0.02))
    gd, plain = partial(Equivariant, "gd", lr=0.1), partial(Equivariant, "plain_adam", lr=0.02)
    laws.params_close(run(network, of(gd().double(), network)), sgd, 1e-12)
    rounding = 1e-9 if network is HEADS else 1e-12  # the gradient of a key's bias is 0, and Adam divides by it
    laws.params_close(run(network, of(plain().double(), network)), adam, rounding)
    laws.must_fail(laws.params_close, run(network, of(trained("gd", lr=0.1), network)), sgd, 1e-6)
    laws.must_fail(laws.params_close, run(network, of(gd().double(), network)), adam, 1e-6)


class Chain(nn.Module):
    """The parameters of the package's MLP, in layers that are called."""

    def __init__(self, widths: tuple[int, ...], activation: Callable[[Tensor], Tensor], bias: bool) -> None:
        super().__init__()
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(d, k, bias=bias, dtype=torch.float64) for d, k in pairs)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(self.activation(x) if i else x)
        return x


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("update", ["polyak", "adam", "plain_adam"])
@pytest.mark.parametrize("action", ["scaling", "linear"])
def test_it_takes_the_steps_of_unroll(action: str, update: str, found: bool) -> None:
    activation = "leaky_relu" if action == "scaling" else "identity"
    family = Regression(
        6, 3, points=16, batch=8, data="gaussian", activation=activation, action=action, bias=action == "scaling"
    )
    tasks = family.sample(1, torch.Generator().manual_seed(3), dtype=torch.float64)
    rule = trained(update, averaging=0.5)
    _, carry = unroll(rule, dict(rule.named_parameters()), tasks, start(rule, tasks), 7)
    assert int(carry.rejected) == 0

    def train_copy(rule: Rule) -> Params:
        slope = partial(F.leaky_relu, negative_slope=0.1) if action == "scaling" else (lambda x: x)
        model = Chain((6, 6, 6, 6), slope, action == "scaling")
        network_cases.write(model, {name: p[0] for name, p in tasks.params.items()})
        symmetry = None if found else tasks.symmetry
        optimizer = rule.optimizer(model, tasks.rows("inputs", torch.zeros(1).long())[0], symmetry=symmetry)
        assert len(optimizer.symmetry.sites) == 2
        for step in range(7):
            x, y = (tasks.rows(name, torch.tensor([step]))[0] for name in ("inputs", "labels"))
            optimizer.step(0.5 * (model(x) - y).square().sum())
        return stacked(model)

    laws.params_close(train_copy(rule), {name: p.detach() for name, p in carry.params.items()}, 1e-9)
    without = trained(update, averaging=0.5)
    without.observes_grams = False
    laws.must_fail(laws.params_close, train_copy(without), carry.params, 1e-6)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_teleports_leave_the_loss_alone(network: Network) -> None:
    model = network.build()
    optimizer = trained("gd", lr=0.0, scale=0.6).optimizer(model, network.batch()[0])
    before, values = stacked(model), train(network, model, optimizer, range(2))
    for seed in range(2):
        there = network.build()
        expected = network_cases.loss(there, network.batch(seed)).detach()
        laws.assert_close(values[seed].reshape(1), expected.reshape(1), 1e-12)
    laws.must_fail(laws.params_close, stacked(model), before, 1e-2)
    assert optimizer.rejected == 0


def false_site() -> Symmetry:
    """Positive scalings where none act: the first layer is scaled and nothing undoes it."""
    views = (View.along("0.weight", (5, 6), 0),), (View.along("2.weight", (4, 5), 1),)
    return Symmetry((Site("false", PositiveScaling(5), *views),))


def test_a_teleport_that_moves_the_loss_is_undone_where_a_closure_shows_it() -> None:
    def undone(symmetry: Symmetry, closures: bool, **options: Any) -> tuple[int, Params]:
        model = RELU.build()
        with torch.no_grad():
            model[0].bias += 3.0
        optimizer = trained("gd", lr=0.1, scale=0.6).optimizer(model, symmetry=symmetry, **options)
        for seed in range(3):
            loss = network_cases.loss(model, RELU.batch(seed)) if not closures else None
            optimizer.step(closure_of(RELU, model, optimizer, seed) if loss is None else loss)
        return optimizer.rejected, stacked(model)

    assert undone(false_site(), True)[0] == 3
    assert undone(RELU.symmetry, True)[0] == 0
    with pytest.warns(UserWarning, match="a teleport was not carried out: the model's outputs moved by"):
        assert undone(false_site(), False)[0] == 3  # the outputs show it
    assert undone(false_site(), False, checked=False)[0] == 0 == undone(false_site(), True, checked=False)[0]
    laws.params_close(undone(RELU.symmetry, True)[1], undone(RELU.symmetry, False)[1], 1e-12)
    laws.must_fail(laws.params_close, undone(false_site(), True)[1], undone(RELU.symmetry, True)[1], 1e-6)


def test_an_ill_conditioned_element_is_not_taken() -> None:
    model = LINEAR.build()
    optimizer = trained(scale=0.6).optimizer(model, symmetry=LINEAR.symmetry, tolerance=1e-16)
    train(LINEAR, model, optimizer)
    assert optimizer.rejected == 6
    laws.params_close(stacked(model), run(LINEAR, lambda m: of(trained(scale=0.6), LINEAR, tolerance=1e-16)(m)), 1e-12)
    assert of(trained(scale=0.6), LINEAR)(LINEAR.build()).rejected == 0


def test_a_closure_is_tried_without_a_trace() -> None:
    class Noisy(nn.Sequential):
        """A network with dropout and running statistics."""

        def __init__(self) -> None:
            super().__init__(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def trained_copy(checked: bool) -> list[Any]:
        network = Network("noisy", Noisy, RELU.symmetry, (8, 6))
        model = network.build()
        optimizer = trained(scale=0.6).optimizer(model, symmetry=RELU.symmetry, checked=checked)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            values = [optimizer.step(closure_of(network, model, optimizer, seed)).detach() for seed in range(4)]
            drawn = torch.rand(3)
        assert optimizer.rejected == 0
        return [values, drawn, model.state_dict(), [p.grad for p in model.parameters()]]

    laws.same_bits(trained_copy(True), trained_copy(False))


def test_closures_and_losses_take_the_same_steps() -> None:
    def steps(closures: bool) -> tuple[list[Tensor], Params, list[Any]]:
        model = RELU.build()
        for p in model.parameters():
            p.grad = torch.ones_like(p)  # of whoever trained it before
        optimizer = trained().optimizer(model, symmetry=RELU.symmetry)
        values = []
        for seed in range(4):
            closure = closure_of(RELU, model, optimizer, seed)
            values.append(optimizer.step(closure if closures else network_cases.loss(model, RELU.batch(seed))))
        return [v.detach() for v in values], stacked(model), [p.grad for p in model.parameters()]

    laws.same_bits(steps(True), steps(False))


def test_schedulers_scale_the_update_and_not_the_teleport() -> None:
    def first_step(lr: float, rule: Rule) -> Params:
        model = RELU.build()
        optimizer = rule.optimizer(model, symmetry=RELU.symmetry, lr=1.0)
        scheduler = StepLR(optimizer, 1, gamma=0.5)
        optimizer.param_groups[0]["lr"] = lr
        train(RELU, model, optimizer, range(1))
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == lr / 2
        return stacked(model)

    here, plain = stacked(RELU.build()), Equivariant("adam").double()
    whole, half = first_step(1.0, plain), first_step(0.5, plain)
    laws.params_close({n: half[n] - here[n] for n in here}, {n: (whole[n] - here[n]) / 2 for n in here}, 1e-12)
    laws.must_fail(laws.params_close, first_step(0.0, trained()), here, 1e-6)
    laws.same_bits(first_step(0.0, plain), here)


def test_weight_decay_is_decoupled() -> None:
    rule = Equivariant("plain_adam", lr=0.02).double()
    wanted = run(RELU, lambda m: AdamW(m.parameters(), 0.02, weight_decay=0.5))
    laws.params_close(run(RELU, of(rule, RELU, weight_decay=0.01)), wanted, 1e-12)
    laws.must_fail(laws.params_close, run(RELU, of(rule, RELU)), wanted, 1e-6)


def test_weight_decay_is_scaled_by_lr() -> None:
    """The part ``lr weight_decay`` of w goes per step, as in torch's AdamW."""
    rule = Equivariant("plain_adam", lr=1.0).double()
    wanted = run(RELU, lambda m: AdamW(m.parameters(), 0.02, weight_decay=0.5))
    laws.params_close(run(RELU, of(rule, RELU, lr=0.02, weight_decay=0.5)), wanted, 1e-12)


def test_groups_have_settings_of_their_own() -> None:
    def groups(make: type, scale: float) -> Callable[[nn.Module], Any]:
        def build(model: nn.Module) -> Any:
            chosen = [{"params": [model[0].weight], "lr": 0.1 * scale}, {"params": [model[2].weight, model[2].bias]}]
            return make(model, chosen)

        return build

    rule = GradientDescent(1.0)
    ours = groups(lambda m, g: LearnedOptimizer(rule, m, RELU.symmetry, params=g, lr=0.02), 1.0)
    theirs = groups(lambda m, g: SGD(g, 0.02), 1.0)
    laws.params_close(run(RELU, ours), run(RELU, theirs), 1e-12)
    laws.must_fail(laws.params_close, run(RELU, ours), run(RELU, groups(lambda m, g: SGD(g, 0.02), 2.0)), 1e-6)
    assert not ours(RELU.build()).symmetry.sites
    model = RELU.build()
    optimizer = ours(model)
    optimizer.add_param_group({"params": [model[0].bias]})
    assert optimizer.symmetry.sites == RELU.symmetry.sites


def test_what_has_no_gradient_stays() -> None:
    model = nn.ModuleDict({"used": RELU.build(), "spare": RELU.build(1)})
    renamed = [
        Site(
            f"{part}.0",
            site.group,
            tuple(View(f"{part}.{v.name}", v.ndim, v.shape, v.units) for v in site.producers),
            tuple(View(f"{part}.{v.name}", v.ndim, v.shape, v.units) for v in site.consumers),
        )
        for part in ("used", "spare")
        for site in RELU.symmetry.sites
    ]
    optimizer = trained(scale=0.6).optimizer(model, symmetry=Symmetry(tuple(renamed)))
    before = parameters(model)
    for seed in range(3):
        optimizer.step(network_cases.loss(model["used"], RELU.batch(seed)))
    after = parameters(model)
    laws.same_bits({n: p for n, p in after.items() if "spare" in n}, {n: p for n, p in before.items() if "spare" in n})
    assert all(not torch.equal(p, before[n]) for n, p in after.items() if "used" in n)
    frozen = RELU.build()
    frozen[0].bias.requires_grad_(False)
    assert not trained().optimizer(frozen, symmetry=RELU.symmetry).symmetry.sites


class Remembering(Rule):
    """Gradient descent that remembers parameters and gradients, and sees what became of them."""

    def init(self, params: Params, symmetry: Symmetry) -> Any:
        return {}, {}

    def forward(self, observation: Any, state: Any) -> Any:
        from meta_teleport.rules.rule import Proposal

        params, gradients = state
        self.last = {name: p.clone() for name, p in params.items()}, {name: g.clone() for name, g in gradients.items()}
        update = {name: -0.1 * g for name, g in observation.gradients.items()}
        return Proposal(update), (observation.params, observation.gradients)


def test_a_rule_may_remember_what_it_saw() -> None:
    model = RELU.build()
    optimizer = LearnedOptimizer(Remembering(), model, RELU.symmetry)
    before = stacked(model)
    train(RELU, model, optimizer, range(2))
    laws.same_bits(optimizer._bound.rule.last[0], before)


@pytest.mark.parametrize("network", [RELU, LINEAR, HEADS], ids=str)
def test_it_resumes_bitwise(network: Network) -> None:
    make = of(trained(scale=0.5, averaging=0.5), network)
    whole = network.build()
    train(network, whole, make(whole), range(6))
    model = network.build()
    optimizer = make(model)
    train(network, model, optimizer, range(3))
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)
    later = network.build(1)
    later.load_state_dict(weights)
    resumed = make(later)
    resumed.load_state_dict(state)
    train(network, later, resumed, range(3, 6))
    laws.same_bits(parameters(later), parameters(whole))
    groups, learned = extract(state, "learned")
    assert learned is not None
    later.load_state_dict(weights)
    resumed.load_state_dict(embed(groups, "learned", {**learned, "state": None, "taken": 0}))
    train(network, later, resumed, range(3, 6))
    laws.must_fail(laws.same_bits, parameters(later), parameters(whole))


def test_the_state_is_in_the_precision_of_the_model(device: str) -> None:
    for dtype in (torch.float32, torch.float64):
        model = RELU.build().to(device, dtype)
        optimizer = trained().float().optimizer(model, symmetry=RELU.symmetry)
        x, y = (t.to(device, dtype) for t in RELU.batch())
        for _ in range(3):
            optimizer.step((model(x) - y).square().mean())
        state = optimizer.state_dict()["param_groups"][0]["learned"]["tensors"].values()
        assert state and all(t.dtype == dtype and t.device == x.device for t in state)
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_errors_have_one_line() -> None:
    model = RELU.build()
    rule, other = trained(), RELU.build()
    optimizer = rule.optimizer(model, symmetry=RELU.symmetry)
    cases: list[tuple[Callable[[], Any], str]] = [
        (optimizer.step, r"reads the loss: call step\(loss\)"),
        (lambda: optimizer.step(torch.tensor(1.0)), "one number with a graph"),
        (lambda: optimizer.step(model[0].weight * 1), "one number with a graph"),
        (lambda: [optimizer.zero_grad(), optimizer.step(lambda: torch.tensor(1.0))], "no parameter has a gradient"),
        (lambda: rule.optimizer(model), "give example_inputs"),
        (lambda: rule.optimizer(model, symmetry=LINEAR.symmetry), "find the symmetry of this model"),
        (lambda: rule.optimizer(model, symmetry=RELU.symmetry, lr=-1), "lr=-1: give a number"),
        (lambda: rule.optimizer(model, symmetry=RELU.symmetry, weight_decay=-1), "weight_decay=-1: give a number"),
        (lambda: rule.optimizer(model, symmetry=RELU.symmetry, tolerance=-1), "tolerance=-1"),
        (lambda: rule.optimizer(model, symmetry=RELU.symmetry, params=other.parameters()), "not a parameter of the"),
        (lambda: LearnedOptimizer(Whitening(), model, RELU.symmetry), "reads the activations of every single point"),
        (lambda: optimizer.load_state_dict(SGD(model.parameters(), 0.1).state_dict()), "is of another optimizer"),
        (lambda: rule.optimizer(RELU.build().half(), symmetry=RELU.symmetry), "float32"),
    ]
    for wrong, message in cases:
        with pytest.raises(UserError, match=message) as raised:
            wrong()
        assert "\n" not in str(raised.value)
    train(RELU, model, optimizer, range(1))
    with pytest.raises(UserError, match="cannot be added after the first step"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    small = trained(scale=0.5).optimizer(LINEAR.build(), symmetry=LINEAR.symmetry)
    with pytest.raises(UserError, match="of another rule or of another model"):
        small.load_state_dict(optimizer.state_dict())


def test_dense_rules_fit_one_network() -> None:
    model = RELU.build()
    shapes = shapes_of(stacked(model), Symmetry(()))
    rule = LSTMUpdate(shapes, hidden_size=4).double()
    train(RELU, model, rule.optimizer(model, symmetry=RELU.symmetry))
    with pytest.raises(UserError, match=r"fits networks of 0\.weight 5x6"):
        rule.optimizer(LINEAR.build(), symmetry=LINEAR.symmetry)


@pytest.mark.parametrize(
    "copied", [deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("network", [RELU, HEADS], ids=str)
def test_copies_go_on_bitwise(network: Network, copied: Callable[..., Any]) -> None:
    model = network.build()
    optimizer = LearnedOptimizer(trained(every=2), model, network.symmetry)
    StepLR(optimizer, 3)
    train(network, model, optimizer, range(3))
    twin, its = copied((model, optimizer))
    for m, o in ((model, optimizer), (twin, its)):
        train(network, m, o, range(3, 8))
    assert its.step_count == 8 and all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )
    assert not any(p is q for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_it_warns_once_where_every_teleport_is_undone() -> None:
    model, batches = RELU.build(), iter(range(100))
    optimizer = LearnedOptimizer(trained(), model, RELU.symmetry)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = network_cases.loss(model, RELU.batch(next(batches)))
        value.backward()
        return value

    with pytest.warns(UserWarning, match="the last 5 teleports were undone") as warned:
        for _ in range(8):
            optimizer.step(closure)
    assert len(warned) == 1 and optimizer.rejected == 8


def test_what_has_changed_since_it_was_made_is_named() -> None:
    model = RELU.build()
    model[0].requires_grad_(False)
    optimizer = LearnedOptimizer(trained(), model, RELU.symmetry, model.parameters())
    train(RELU, model, optimizer, range(1))
    model[0].requires_grad_(True)
    with pytest.raises(UserError, match=r"'0.weight' was frozen when this optimizer was made and is trainable now"):
        train(RELU, model, optimizer, range(1))
    model = RELU.build()
    optimizer = LearnedOptimizer(trained(), model, RELU.symmetry)
    model.float()
    with pytest.raises(UserError, match=r"the model is torch.float32 on cpu now, and was torch.float64"):
        optimizer.step(torch.ones(1, requires_grad=True).sum())
    with pytest.raises(UserError, match="needs one number with a graph"):
        LearnedOptimizer(trained(), RELU.build(), RELU.symmetry).step(1.0)  # type: ignore[arg-type]


def test_a_frozen_layer_stays_and_training_goes_on() -> None:
    model = RELU.build()
    optimizer = LearnedOptimizer(trained(), model, RELU.symmetry)
    train(RELU, model, optimizer, range(2))
    network_cases.loss(model, RELU.batch(2)).backward()
    model[0].requires_grad_(False)  # with a gradient that is old
    before = parameters(model)
    for seed in range(2, 5):
        optimizer.step(network_cases.loss(model, RELU.batch(seed)))
    after = parameters(model)
    laws.same_bits([after[name] for name in ("0.weight", "0.bias")], [before[name] for name in ("0.weight", "0.bias")])
    laws.must_fail(laws.same_bits, after["2.weight"], before["2.weight"])
    model[0].requires_grad_(True)
    train(RELU, model, optimizer, range(5, 7))
    laws.must_fail(laws.same_bits, parameters(model)["0.weight"], before["0.weight"])


@pytest.mark.parametrize("change", ["replaced", "added"])
def test_what_is_not_the_model_that_it_was_made_for_is_refused(change: str) -> None:
    model = RELU.build()
    optimizer = LearnedOptimizer(trained(), model, RELU.symmetry)
    train(RELU, model, optimizer, range(1))
    for p in model.parameters():
        p.data = p.data.clone()  # the same parameters
    train(RELU, model, optimizer, range(1))
    if change == "replaced":
        model[2].weight = nn.Parameter(model[2].weight.detach().clone())
        message = r"parameter '2.weight' is another object than when the optimizer was made: make a new optimizer"
    else:
        model.add_module("head", nn.Linear(4, 4).double())
        message = r"'head.weight' is new since the symmetry was found"
    before = parameters(model)
    with pytest.raises(UserError, match=message):
        train(RELU, model, optimizer, range(1))
    laws.same_bits(parameters(model), before)
