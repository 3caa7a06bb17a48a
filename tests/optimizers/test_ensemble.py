"""Ensemble of one network in one batched program against as many separate runs; float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import laws
import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adafactor, Adagrad, Adam, AdamW, Optimizer, RMSprop

from meta_teleport.errors import UserError
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble, Moved, Search
from meta_teleport.optimizers.stacked import ENTRYWISE, Factory, per_copy
from meta_teleport.optimizers.teleported import TeleportedOptimizer
from meta_teleport.params import Params
from meta_teleport.symmetry.groups import PositiveScaling
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.teleportation.ascent import ascend

SEEDS = (3, 5, 8)
SETTINGS: dict[str, Factory] = {
    "sgd": partial(SGD, lr=0.3),
    "momentum": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adagrad": partial(Adagrad, lr=0.05, initial_accumulator_value=0.1),
    "rmsprop": partial(RMSprop, lr=0.01, centered=True, momentum=0.5),
    "adam": partial(Adam, lr=0.02, amsgrad=True),
    "adamw": partial(AdamW, lr=0.02),
    "fused": partial(Adam, lr=0.02, fused=True),
}
if hasattr(torch.optim, "Muon"):
    SETTINGS["muon"] = per_copy(lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], 0.02))


class Normed(nn.Sequential):
    """With BatchNorm: running means, running variances and a count of batches as buffers. No bias below it: its
    gradient is zero, and Adam would make steps of what rounding leaves of it."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))


def mlp() -> nn.Module:
    return MLP((6, 5, 4), "leaky_relu", bias=True).double()


def normed() -> nn.Module:
    return Normed().double()


BUILDS = {"mlp": mlp, "normed": normed}
MLP_SCALING = mlp_symmetry(MLP((6, 5, 4), bias=True), "scaling")
NORMED_SCALING = Symmetry(
    (
        Site(
            "norm",
            PositiveScaling(5),
            (View.along("1.weight", (5,), 0), View.along("1.bias", (5,), 0)),
            (View.along("3.weight", (4, 5), 1),),
        ),
    )
)


def linear() -> nn.Module:
    return MLP((6, 5, 4), "identity").double()


LINEAR_GL = mlp_symmetry(MLP((6, 5, 4), "identity"), "linear")


def batch(seed: int, leading: int = 1, n: int = 9) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(leading, n, 6, generator=drawn, dtype=torch.float64)
    return x, torch.randint(4, (leading, n), generator=drawn)


def separate(build: Callable[[], nn.Module], seed: int, factory: Factory) -> tuple[nn.Module, Optimizer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    return model, factory(list(model.parameters()))


def descend(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def same_as_separate(copies: Ensemble, number: int, model: nn.Module, tolerance: float = 1e-12) -> None:
    """Copy ``number`` has the parameters and buffers of ``model``."""
    for own, other in ((copies.params, model.named_parameters()), (copies.buffers, model.named_buffers())):
        expected = {name: tensor.detach()[None].double() for name, tensor in other}
        if expected:
            laws.params_close({n: own[n].detach()[number][None].double() for n in expected}, expected, tolerance)


# R copies = R runs


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("network", BUILDS)
def test_copies_are_separate_runs(network: str, own: bool) -> None:
    build, names = BUILDS[network], [name for name in SETTINGS if network == "mlp" or name != "muon"]
    copies = Ensemble(build, SEEDS, [SETTINGS[name] for name in names])
    assert copies.count == len(names) * len(SEEDS) >= 18
    runs = [separate(build, seed, SETTINGS[name]) for name in names for seed in SEEDS]
    for step in range(8):
        x, y = batch(step, len(SEEDS) if own else 1)
        losses = copies.step(x, y)
        places = [number % len(SEEDS) if own else 0 for number in range(copies.count)]
        expected = [descend(*run, x[at], y[at]) for run, at in zip(runs, places, strict=True)]
        laws.assert_close(losses[:, None], torch.stack(expected)[:, None], 1e-12)
    x, y = batch(99)
    loss, accuracy = copies.evaluate(x[0], y[0])
    for number, (model, _) in enumerate(runs):
        if network == "normed" or names[number // len(SEEDS)] != "muon":
            same_as_separate(copies, number, model)
        outputs = model.eval()(x[0]).detach()
        assert loss[number] == pytest.approx(float(nn.functional.cross_entropy(outputs, y[0])), rel=1e-9)
        assert accuracy[number] == pytest.approx(float((outputs.argmax(1) == y[0]).double().mean()))
    laws.must_fail(same_as_separate, copies, 0, runs[1][0])
    laws.must_fail(same_as_separate, copies, 0, runs[len(SEEDS)][0])


def test_muon_trains_every_copy_for_itself() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    copies = Ensemble(linear, SEEDS, [SETTINGS["muon"], per_copy(SETTINGS["muon"])])
    runs = [separate(linear, seed, SETTINGS["muon"]) for seed in SEEDS * 2]
    for step in range(8):
        x, y = batch(step)
        copies.step(x, y)
        for run in runs:
            descend(*run, x[0], y[0])
    for number, (model, _) in enumerate(runs):
        same_as_separate(copies, number, model)
    laws.must_fail(same_as_separate, copies, 0, runs[1][0])


WHOLE: dict[str, Factory] = {
    "adafactor": partial(Adafactor, lr=0.02),
    "lamb": partial(pytorch_optimizer.Lamb, lr=0.02),
    "soap": partial(pytorch_optimizer.SOAP, lr=0.02, precondition_frequency=2),
    "shampoo": partial(pytorch_optimizer.Shampoo, lr=0.02, matrix_eps=0.1),
}
"""Optimizers that read more than one entry at a time: whole tensors, or all of them."""


def square() -> nn.Module:
    """Gradients of full rank: within a null space, SOAP's first basis is what rounding makes of it."""
    return MLP((6, 6, 6), "leaky_relu").double()


def mean_square(outputs: Tensor, labels: Tensor | None = None) -> Tensor:
    return outputs.square().mean((-2, -1))


def trained_as_squares(copies: Ensemble, runs: list[tuple[nn.Module, Optimizer]], steps: range) -> None:
    for step in steps:
        x, y = batch(step)
        copies.step(x, y)
        for model, optimizer in runs:
            optimizer.zero_grad()
            mean_square(model(x[0])).backward()
            optimizer.step()


@pytest.mark.parametrize("name", WHOLE)
def test_what_does_not_work_by_entries_trains_every_copy_for_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = Ensemble(square, SEEDS, [WHOLE[name]], mean_square)
    runs = [separate(square, seed, WHOLE[name]) for seed in SEEDS]
    trained_as_squares(copies, runs, range(6))
    for number, (model, _) in enumerate(runs):
        same_as_separate(copies, number, model, 1e-9)
    there = Ensemble(square, SEEDS, [WHOLE[name]], mean_square)
    there.restore(copies.state())
    for step in range(6, 11):
        laws.same_bits(copies.step(*batch(step)), there.step(*batch(step)))
    laws.same_bits(copies.state(), there.state())
    monkeypatch.setattr("meta_teleport.optimizers.stacked.ENTRYWISE", (*ENTRYWISE, type(runs[0][1])))
    together = Ensemble(square, SEEDS, [WHOLE[name]], mean_square)
    trained_as_squares(together, [], range(6))
    laws.must_fail(same_as_separate, together, 0, runs[0][0], 1e-6)


def test_muon_needs_no_mark() -> None:
    """It refuses the stacked matrices when it is made."""
    make = lambda p: torch.optim.Muon(p, 0.02)  # noqa: E731
    copies = Ensemble(square, SEEDS, [make], mean_square)
    runs = [separate(square, seed, make) for seed in SEEDS]
    trained_as_squares(copies, runs, range(4))
    for number, (model, _) in enumerate(runs):
        same_as_separate(copies, number, model, 1e-9)


def test_soap_is_transported_in_every_copy() -> None:
    symmetry = mlp_symmetry(MLP((6, 6, 6)), "scaling")
    copies = Ensemble(square, SEEDS, [WHOLE["soap"]], mean_square)
    runs = [separate(square, seed, WHOLE["soap"]) for seed in SEEDS]
    trained_as_squares(copies, runs, range(4))

    def search(symmetry: Symmetry, params: Params, loss: Any, inputs: Tensor) -> Moved:
        found = ascend(symmetry, params, None, loss, steps=4, size=0.3)
        return Moved(found.params, found.length, found.elements)

    x, y = batch(50)
    assert bool(copies.teleport(0, symmetry, search, x[0], y[0]).kept.all())
    for model, optimizer in runs:
        options: dict[str, Any] = {"loss": lambda m, x: mean_square(m(x)), "batches": lambda: x[0]}
        assert TeleportedOptimizer(optimizer, model, symmetry, steps=4, size=0.3, **options).teleport().accepted
    trained_as_squares(copies, runs, range(60, 62))
    for number, (model, _) in enumerate(runs):
        same_as_separate(copies, number, model, 1e-8)


def test_evaluation_leaves_everything_alone_and_goes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from meta_teleport.optimizers import ensemble as module

    copies = Ensemble(normed, SEEDS, [SETTINGS["adam"]])
    copies.step(*batch(0))
    before, (x, y) = copies.state(), batch(1, n=11)
    whole = copies.evaluate(x[0], y[0])
    monkeypatch.setattr(module, "CHUNK", 4)
    for part, all_at_once in zip(copies.evaluate(x[0], y[0]), whole, strict=True):
        laws.assert_close(part[:, None].double(), all_at_once[:, None].double(), 1e-6)
    laws.same_bits(copies.state(), before)
    assert copies.model.training


def test_a_loss_of_ones_own() -> None:
    def squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean((1, 2))

    copies = Ensemble(mlp, SEEDS, [SETTINGS["sgd"]], squares)
    x, _ = batch(0)
    targets = torch.ones(1, 9, 4, dtype=torch.float64)
    losses = copies.step(x, targets)
    for number, seed in enumerate(SEEDS):
        model, optimizer = separate(mlp, seed, SETTINGS["sgd"])
        loss = (model(x[0]) - targets[0]).square().mean()
        loss.backward()
        optimizer.step()
        assert losses[number] == pytest.approx(loss.item(), rel=1e-12)
        same_as_separate(copies, number, model)


def test_a_copy_that_diverges_harms_no_other() -> None:
    settings: list[Factory] = [partial(SGD, lr=1e200), SETTINGS["sgd"], SETTINGS["adam"]]
    for build in BUILDS.values():
        copies, calm = Ensemble(build, SEEDS, settings), Ensemble(build, SEEDS, settings[1:])
        for step in range(5):
            copies.step(*batch(step))
            calm.step(*batch(step))
        for name, p in calm.params.items():
            assert not copies.params[name][: len(SEEDS)].isfinite().all()
            laws.assert_close(copies.params[name][len(SEEDS) :].detach(), p.detach(), 1e-12)


def test_a_seed_that_diverges_harms_no_other_of_its_setting() -> None:
    copies, calm = (Ensemble(mlp, SEEDS, [SETTINGS["adam"], SETTINGS["momentum"]]) for _ in range(2))
    copies.params["layers.0.weight"].data[[1, 4]] = torch.nan
    for step in range(5):
        copies.step(*batch(step))
        calm.step(*batch(step))
    for name, p in calm.params.items():
        laws.assert_close(copies.params[name][[0, 2, 3, 5]].detach(), p[[0, 2, 3, 5]].detach(), 1e-12)
        assert copies.params[name][[1, 4]].isnan().any()


def test_parameters_that_are_not_trained_and_parameters_without_use() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.unused = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(2, 2)
            self.first.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    def build() -> nn.Module:
        return Partly().double()

    factory = partial(AdamW, lr=0.1, weight_decay=0.1)
    copies = Ensemble(build, SEEDS, [factory])
    runs = [separate(build, seed, factory) for seed in SEEDS]
    for step in range(4):
        x, y = batch(step)
        copies.step(x, y)
        for run in runs:
            descend(*run, x[0], y[0])
    for number, (model, _) in enumerate(runs):
        for name, p in model.named_parameters():
            kept = copies.buffers if name.startswith("first") else copies.params
            laws.assert_close(kept[name][number][None].detach(), p[None].detach(), 1e-12)


def test_initial_weights_leave_the_global_generator_alone() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    Ensemble(mlp, SEEDS, [SETTINGS["sgd"]])
    assert torch.equal(torch.rand(3), expected)


# resumed = uninterrupted


@pytest.mark.parametrize("network", BUILDS)
def test_restored_copies_go_on_bit_for_bit(network: str) -> None:
    names = [name for name in SETTINGS if network == "mlp" or name != "muon"]
    settings = [SETTINGS[name] for name in names]
    through = Ensemble(BUILDS[network], SEEDS, settings)
    for step in range(3):
        through.step(*batch(step))
    state = through.state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    for step in range(3, 6):
        through.step(*batch(step))
    assert not torch.equal(through.state()["params." + next(iter(through.params))], next(iter(kept.values())))
    laws.same_bits(state, kept)
    for _ in range(2):
        resumed = Ensemble(BUILDS[network], (0, 1, 2), settings)
        resumed.restore(state)
        laws.same_bits(resumed.state(), kept)
        for step in range(3, 6):
            resumed.step(*batch(step))
        laws.same_bits(resumed.state(), through.state())
        laws.same_bits(state, kept)
    without = Ensemble(BUILDS[network], SEEDS, settings)
    without.restore({name: tensor for name, tensor in state.items() if not name.startswith("settings.4.")})
    for step in range(3, 6):
        without.step(*batch(step))
    laws.must_fail(laws.same_bits, without.state(), through.state())


def test_a_state_of_another_network_is_refused() -> None:
    copies = Ensemble(mlp, SEEDS, [SETTINGS["adam"]])
    before = copies.state()
    for state in (
        Ensemble(mlp, (0, 1), [SETTINGS["adam"]]).state(),
        Ensemble(normed, SEEDS, [SETTINGS["adam"]]).state(),
    ):
        with pytest.raises(UserError) as error:
            copies.restore(state)
        expected = "this is no state of 3 copies of this network: its 'params.layers.0.weight' does not fit"
        assert str(error.value) == expected
    laws.same_bits(copies.state(), before)


# teleports


def climb(symmetry: Symmetry, params: Params, loss: Any, inputs: Tensor) -> Moved:
    end = ascend(symmetry, params, symmetry.prepare(inputs), loss, steps=4, size=0.3)
    return Moved(end.params, end.length, end.elements)


def mean_loss(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(data[0]), data[1])


CASES = {
    "scaling": (mlp, MLP_SCALING),
    "gl": (linear, LINEAR_GL),
    "norm": (normed, NORMED_SCALING),
}
BASES = [name for name in SETTINGS if name != "muon"]


@pytest.mark.parametrize("state", ["transport", "reset", "keep"])
@pytest.mark.parametrize("case", CASES)
def test_a_teleport_is_that_of_the_teleported_optimizer(case: str, state: str) -> None:
    build, symmetry = CASES[case]
    bases = [*BASES, "muon"] if case == "gl" and "muon" in SETTINGS else BASES
    copies = Ensemble(build, SEEDS, [SETTINGS[name] for name in bases])
    runs = [separate(build, seed, SETTINGS[name]) for name in bases for seed in SEEDS]
    x, y = batch(0)

    def train(steps: range) -> None:
        for step in steps:
            copies.step(*batch(step))
            for model, optimizer in runs:
                descend(model, optimizer, batch(step)[0][0], batch(step)[1][0])

    train(range(4))
    outputs = copies.outputs(x, buffers={n: b.clone() for n, b in copies.buffers.items()}).detach()
    before = {name: p.detach().clone() for name, p in copies.params.items()}
    for number in range(len(bases)):
        jump = copies.teleport(number, symmetry, climb, x[0], y[0], state)
        assert jump.kept.all() and bool((jump.size > 0).all())
        laws.assert_close(jump.after[:, None], jump.before[:, None], 1e-12)
    for model, optimizer in runs:
        options: dict[str, Any] = {"loss": mean_loss, "batches": lambda: (x[0], y[0]), "state": state}
        held = {name: buffer.clone() for name, buffer in model.named_buffers()}
        assert TeleportedOptimizer(optimizer, model, symmetry, steps=4, size=0.3, **options).teleport().accepted
        for name, buffer in model.named_buffers():
            buffer.copy_(held[name])
    moved = copies.outputs(x, buffers={n: b.clone() for n, b in copies.buffers.items()}).detach()
    laws.assert_close(moved, outputs, 1e-12)
    assert any(not torch.allclose(copies.params[name], before[name]) for name in before)
    for number, (model, _) in enumerate(runs):
        same_as_separate(copies, number, model)
    train(range(4, 8))
    for number, (model, _) in enumerate(runs):
        same_as_separate(copies, number, model, 1e-11)


def test_the_three_rules_for_the_state_differ() -> None:
    ends = []
    for state in ("transport", "reset", "keep"):
        copies = Ensemble(mlp, SEEDS, [SETTINGS["adam"]])
        for step in range(4):
            copies.step(*batch(step))
        copies.teleport(0, MLP_SCALING, climb, batch(0)[0][0], batch(0)[1][0], state)
        copies.step(*batch(4))
        ends.append(copies.params["layers.0.weight"].detach())
    for one, other in ((0, 1), (0, 2), (1, 2)):
        laws.must_fail(laws.assert_close, ends[one], ends[other], 1e-6)


def test_a_teleport_moves_one_setting_and_leaves_buffers_alone() -> None:
    copies = Ensemble(normed, SEEDS, [SETTINGS["adam"], SETTINGS["adamw"]])
    copies.step(*batch(0))
    before = copies.state()
    copies.teleport(1, NORMED_SCALING, climb, batch(1)[0][0], batch(1)[1][0])
    after = copies.state()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    expected = [f"params.{name}" for name in ("1.weight", "1.bias", "3.weight")]
    expected += [f"settings.1.{i}.{key}" for i in (1, 2, 3) for key in ("exp_avg", "exp_avg_sq")]
    assert sorted(moved) == sorted(expected)
    laws.same_bits(after["params.1.weight"][: len(SEEDS)], before["params.1.weight"][: len(SEEDS)])


def spoiled(value: float, at: int) -> Search:
    """A search that ends, for one copy, at a parameter that is not finite."""

    def search(symmetry: Symmetry, params: Params, loss: Any, inputs: Tensor) -> Moved:
        found = climb(symmetry, params, loss, inputs)
        broken = {name: p.clone() for name, p in found.params.items()}
        broken["layers.1.weight"][at, 0, 0] = value
        assert found.elements is not None
        elements = [g.clone() for g in found.elements]
        elements[0][at] = value
        return Moved(broken, found.size, elements)

    return search


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("case", ["scaling", "gl"])
def test_a_teleport_that_is_not_finite_is_undone(case: str, value: float) -> None:
    build, symmetry = CASES[case]
    copies, other = (Ensemble(build, SEEDS, [SETTINGS["adam"]]) for _ in range(2))
    for step in range(3):
        copies.step(*batch(step))
        other.step(*batch(step))
    before, (x, y) = copies.state(), batch(5)
    jump = copies.teleport(0, symmetry, spoiled(value, at=1), x[0], y[0])
    expected = other.teleport(0, symmetry, climb, x[0], y[0])
    assert jump.kept.tolist() == [True, False, True]
    assert jump.size[1] == 0 and jump.after[1] == jump.before[1]
    laws.same_bits([jump.size[[0, 2]], jump.after[[0, 2]]], [expected.size[[0, 2]], expected.after[[0, 2]]])
    for name, tensor in copies.state().items():
        if tensor.ndim > 1:
            laws.same_bits(tensor[1], before[name][1])
            laws.same_bits(tensor[[0, 2]], other.state()[name][[0, 2]])


@pytest.mark.parametrize("case", ["scaling", "gl"])
def test_copies_teleport_beside_one_that_has_diverged(case: str) -> None:
    build, symmetry = CASES[case]
    copies, calm = (Ensemble(build, SEEDS, [SETTINGS["adam"]]) for _ in range(2))
    copies.params["layers.0.weight"].data[1] = torch.nan
    for each_of in (copies, calm):
        each_of.step(*batch(0))
    jumps = [c.teleport(0, symmetry, climb, batch(1)[0][0], batch(1)[1][0]) for c in (copies, calm)]
    assert jumps[0].kept.tolist() == [True, False, True] and jumps[1].kept.all()
    for name, tensor in copies.state().items():
        if tensor.ndim > 1:
            laws.assert_close(tensor[[0, 2]], calm.state()[name][[0, 2]], 1e-12)


def test_what_cannot_be_transported() -> None:
    def drifting(symmetry: Symmetry, params: Params, loss: Any, inputs: Tensor) -> Moved:
        return Moved(params, next(iter(params.values())).new_zeros(len(SEEDS)))

    copies = Ensemble(mlp, SEEDS, [SETTINGS["adam"], per_copy(lambda p: torch.optim.Rprop(p))])
    x, y = batch(0)
    copies.step(x, y)
    before = copies.state()
    with pytest.raises(UserError) as error:
        copies.teleport(0, MLP_SCALING, drifting, x[0], y[0])
    expected = "the state cannot be transported: sites that depend on data have no law; use reset or keep"
    assert str(error.value) == expected
    with pytest.raises(UserError, match="how the state of Rprop moves is not known: use state='reset' or 'keep'"):
        copies.teleport(1, MLP_SCALING, climb, x[0], y[0])
    with pytest.raises(UserError) as error:
        copies.teleport(0, MLP_SCALING, climb, x[0], y[0], "transported")
    assert str(error.value) == "unknown state 'transported': choose one of keep, reset, transport"
    laws.same_bits(copies.state(), before)


# what is refused


def test_without_seeds_or_settings() -> None:
    for seeds, settings in (((), [SETTINGS["sgd"]]), (SEEDS, [])):
        with pytest.raises(UserError) as error:
            Ensemble(mlp, seeds, settings)
        assert str(error.value) == "copies need at least one seed and one setting"


def test_lbfgs_is_refused() -> None:
    for factory in (partial(LBFGS, lr=1.0), per_copy(partial(LBFGS, lr=1.0))):
        with pytest.raises(UserError) as error:
            Ensemble(mlp, SEEDS, [factory])
        expected = "L-BFGS takes all its parameters for those of one network: train its runs one by one"
        assert str(error.value) == expected


def refused(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("network", BUILDS)
def test_batches_that_do_not_fit(network: str) -> None:
    copies = Ensemble(BUILDS[network], SEEDS, [SETTINGS["sgd"], SETTINGS["adam"]])
    before, (x, y) = {name: p.detach().clone() for name, p in copies.params.items()}, batch(0)
    start = "inputs of shape (9, 5) do not fit the model: "
    assert refused(copies.step, x[..., :5], y).startswith(start)
    assert refused(copies.evaluate, x[0, :, :5], y[0]).startswith(start)
    own = "does not fit 3 seeds: its first dimension is 1, for all copies, or the number of seeds"
    for count in (2, 4, 6):
        assert refused(copies.step, x.repeat(count, 1, 1), y) == f"a batch of shape ({count}, 9, 6) {own}"
    assert refused(copies.step, x, y.repeat(2, 1)) == f"a batch of shape (2, 9) {own}"
    start = "labels of shape (6, 7) do not fit outputs of shape (6, 9, 4): "
    assert refused(copies.step, x, y[:, :7]).startswith(start)
    text = "labels of shape (6, 9) do not fit outputs of shape (6, 9, 4): Target 5 is out of bounds."
    assert refused(copies.step, x, torch.full_like(y, 5)) == text
    assert refused(copies.evaluate, x[0], torch.full_like(y[0], 5)) == text
    text = "9 inputs and 7 labels to evaluate on: give one label per input"
    assert refused(copies.evaluate, x[0], y[0, :7]) == text
    laws.same_bits({name: p.detach() for name, p in copies.params.items()}, before)
