"""Torch optimizers with teleports between their steps."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from typing import Any

import laws
import network_cases
import pytest
import torch
from network_cases import HEADS, LINEAR, NETWORKS, RELU, Network, parameters
from torch import Tensor, nn
from torch.optim import ASGD, LBFGS, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, Optimizer, RMSprop, Rprop
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook

from meta_teleport.errors import UserError
from meta_teleport.models import MLP
from meta_teleport.optimizers.history import NO_FASTER, WORSE_VALIDATION
from meta_teleport.optimizers.saved_states import extract
from meta_teleport.optimizers.schedules import Budget, Plateau
from meta_teleport.optimizers.teleported import TeleportedOptimizer
from meta_teleport.optimizers.transport import moved_gradients, moved_state
from meta_teleport.symmetry.groups import FirstOrder
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.symmetry import Symmetry

BASES: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: SGD(p, 0.05),
    "momentum": lambda p: SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adagrad": lambda p: Adagrad(p, 0.05, initial_accumulator_value=0.1),
    "rmsprop": lambda p: RMSprop(p, 0.01, centered=True, momentum=0.5),
    "adam": lambda p: Adam(p, 0.02),
    "amsgrad": lambda p: Adam(p, 0.02, amsgrad=True),
    "fused": lambda p: Adam(p, 0.02, fused=True),
    "adamw": lambda p: AdamW(p, 0.02),
    "adamax": lambda p: Adamax(p, 0.02),
    "adadelta": lambda p: Adadelta(p, 1.0),
    "asgd": lambda p: ASGD(p, 0.05, t0=1),
    "lbfgs": lambda p: LBFGS(p, 0.3, max_iter=3),
    "wolfe": lambda p: LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
}
if hasattr(torch.optim, "Muon"):
    BASES["muon"] = lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], 0.02)


def teleported(
    network: Network, model: nn.Module, base: str = "adam", schedule: Any = (), **options: Any
) -> TeleportedOptimizer:
    options = {"loss": network_cases.loss, "batches": lambda: network.batch(99), **options}
    optimizer = BASES[base](list(model.parameters()))
    objective = options.pop("objective", "gradient_norm")
    return TeleportedOptimizer(optimizer, model, network.symmetry, objective, schedule, **options)


def closure_of(network: Network, model: nn.Module, seed: int) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        value = network_cases.loss(model, network.batch(seed))
        value.backward()
        return value

    return closure


def train(network: Network, model: nn.Module, optimizer: Optimizer, steps: range = range(6)) -> list[Tensor]:
    return [optimizer.step(closure_of(network, model, seed)) for seed in steps]


def snapshot(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Parameters, gradients and the state that the base optimizer would save, as copies."""
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    state = extract(optimizer.state_dict(), "teleportation")[0]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return {"params": parameters(model), "gradients": gradients, "state": torch.load(buffer)}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("network", [RELU, LINEAR], ids=str)
def test_without_teleports_it_is_bitwise_the_base_optimizer(network: Network, base: str) -> None:
    def run(wrap: Callable[[nn.Module], Optimizer]) -> list[Any]:
        model = network.build()
        optimizer = wrap(model)
        return [train(network, model, optimizer), snapshot(model, optimizer)]

    bare = run(lambda model: BASES[base](list(model.parameters())))
    laws.same_bits(run(lambda model: teleported(network, model, base)), bare)
    laws.must_fail(laws.same_bits, run(lambda model: teleported(network, model, base, 2)), bare)


@pytest.mark.parametrize("base", BASES)
def test_without_closure_and_without_teleports_it_is_bitwise_the_base_optimizer(base: str) -> None:
    def run(optimizer_of: Callable[[nn.Module], Optimizer]) -> dict[str, Any]:
        model = RELU.build()
        optimizer = optimizer_of(model)
        for seed in range(4):
            closure_of(RELU, model, seed)()
            assert optimizer.step() is None
        return snapshot(model, optimizer)

    if "lbfgs" in base or base == "wolfe":
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'closure'"):
            teleported(RELU, RELU.build(), base).step()
    else:
        laws.same_bits(run(lambda m: teleported(RELU, m, base)), run(lambda m: BASES[base](list(m.parameters()))))


@pytest.mark.parametrize("state", ["keep", "reset", "transport"])
@pytest.mark.parametrize("base", BASES)
def test_a_teleport_keeps_the_loss_and_training_goes_on(base: str, state: str) -> None:
    network, model = LINEAR, LINEAR.build()
    optimizer = teleported(network, model, base, [4], state=state, steps=3)
    train(network, model, optimizer, range(3))
    start = parameters(model)
    before = network_cases.loss(model, network.batch(0)).detach()
    record = optimizer.teleport()
    assert record.accepted and record.after > 1.01 * record.before and record.drift < 1e-12
    after = network_cases.loss(model, network.batch(0)).detach()
    laws.assert_close(after.reshape(1), before.reshape(1), 1e-12)
    laws.must_fail(laws.memory_moves, start, parameters(model), lambda params: params, 1e-3)
    values = train(network, model, optimizer, range(3, 6))
    assert all(bool(torch.isfinite(value)) for value in values)
    assert [r.step for r in optimizer.teleports] == [3, 4]


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_what_becomes_of_the_state(network: Network) -> None:
    def run(state: str) -> tuple[nn.Module, TeleportedOptimizer, dict[str, Any]]:
        model = network.build()
        optimizer = teleported(network, model, "adam", state=state)
        train(network, model, optimizer)
        before = snapshot(model, optimizer)
        found = optimizer._search(network.batch(99), 1.0, optimizer._memory.repeat)
        names = {p: name for name, p in model.named_parameters()}
        writes = moved_gradients(names, optimizer.symmetry, found.elements)
        writes += moved_state(optimizer.base, names, optimizer.symmetry, found.elements)
        expected = [value for _, value in writes]
        optimizer.teleport()
        before["moved"] = expected, [tensor for tensor, _ in writes]
        return model, optimizer, before

    model, optimizer, before = run("transport")
    laws.same_bits(*before["moved"])
    steps = [float(entry["step"]) for entry in optimizer.state.values()]
    assert steps == [6.0] * len(list(model.parameters()))
    model, optimizer, before = run("keep")
    laws.same_bits(snapshot(model, optimizer)["state"], before["state"])
    laws.must_fail(laws.same_bits, snapshot(model, optimizer)["gradients"], before["gradients"])
    model, optimizer, before = run("reset")
    untouched = {p for n, p in model.named_parameters() if all(n not in s.parameters for s in network.symmetry.sites)}
    assert set(optimizer.state) == untouched


@pytest.mark.parametrize("base", [b for b in BASES if b not in ("lbfgs", "wolfe")])
def test_a_teleport_before_the_first_step_moves_the_gradients_that_are_there(base: str) -> None:
    """With or without a closure, that computes them at the moved weights, the first step is the same."""
    ends = []
    for with_closure in (True, False):
        model = LINEAR.build()
        optimizer = teleported(LINEAR, model, base, [0])
        closure = closure_of(LINEAR, model, 0)
        if with_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        assert [r.step for r in optimizer.teleports] == [0]
        ends.append(parameters(model))
    laws.memory_moves(*ends, lambda params: params, 1e-6 if base == "muon" else 1e-10)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("objective", ["gradient_norm", "random"])
def test_resumed_is_bitwise_uninterrupted(base: str, objective: str) -> None:
    def make() -> tuple[nn.Module, TeleportedOptimizer]:
        model, generator = LINEAR.build(), torch.Generator().manual_seed(3)
        schedule = Plateau(2, threshold=0.5)
        return model, teleported(LINEAR, model, base, schedule, objective=objective, generator=generator, imbalance=inf)

    def records(optimizer: TeleportedOptimizer) -> str:
        return repr([replace(record, seconds=0.0) for record in optimizer.teleports])

    model, optimizer = make()
    train(LINEAR, model, optimizer, range(5))
    optimizer.report(validation=1.0)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other, resumed = make()
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    laws.same_bits(snapshot(other, resumed)["state"], snapshot(model, optimizer)["state"])
    for m, o in ((model, optimizer), (other, resumed)):
        train(LINEAR, m, o, range(5, 10))
        o.report(validation=2.0)
    assert len(optimizer.teleports) >= 3 and records(resumed) == records(optimizer)
    laws.same_bits(snapshot(other, resumed), snapshot(model, optimizer))
    fresh, restarted = make()
    fresh.load_state_dict(saved["model"])
    train(LINEAR, fresh, restarted, range(5, 10))
    laws.must_fail(laws.same_bits, parameters(fresh), parameters(model))


@pytest.mark.parametrize("base", ["momentum", "fused", "wolfe"])
def test_on_every_device(base: str, device: str) -> None:
    """Off it is bitwise the base optimizer; a teleport leaves the next loss alone, and changes those after it."""

    def run(schedule: list[int] | None) -> list[Any]:
        model, batch = HEADS.build().to(device), tuple(t.to(device) for t in HEADS.batch())
        optimizer = BASES[base](list(model.parameters()))
        if schedule is not None:
            optimizer = TeleportedOptimizer(
                optimizer, model, HEADS.symmetry, schedule=schedule, loss=network_cases.loss, batches=lambda: batch
            )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = network_cases.loss(model, batch)
            value.backward()
            return value

        values = [float(optimizer.step(closure).detach()) for _ in range(4)]
        assert all(p.device.type == device for p in model.parameters())
        return [values, parameters(model)]

    bare = run(None)
    laws.same_bits(run([]), bare)
    laws.must_fail(laws.same_bits, run([2]), bare)
    assert run([2])[0][:3] == pytest.approx(bare[0][:3], rel=1e-12) and run([2])[0][3] != bare[0][3]


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
}


@pytest.mark.parametrize("base", [b for b in BASES if b not in ("lbfgs", "wolfe")])
@pytest.mark.parametrize("method", COPIES)
def test_a_copy_trains_on_as_the_original_does_and_apart_from_it(method: str, base: str) -> None:
    model, options = LINEAR.build(), {"objective": "random", "generator": torch.Generator().manual_seed(3)}
    optimizer = teleported(LINEAR, model, base, 2, batches=LINEAR.batch, **options)
    StepLR(optimizer, 100)
    train(LINEAR, model, optimizer, range(3))
    other, copied = COPIES[method]((model, optimizer))
    assert copied.model is other and copied.symmetry == optimizer.symmetry
    assert {p for group in copied.param_groups for p in group["params"]} <= set(other.parameters())
    before = snapshot(other, copied)
    laws.same_bits([before["params"], before["state"]], [(s := snapshot(model, optimizer))["params"], s["state"]])
    train(LINEAR, model, optimizer, range(3, 7))
    laws.same_bits(snapshot(other, copied), before)
    laws.must_fail(laws.same_bits, parameters(model), before["params"])
    train(LINEAR, other, copied, range(3, 7))
    laws.same_bits(snapshot(other, copied), snapshot(model, optimizer))
    records = [[replace(record, seconds=0.0) for record in o.teleports] for o in (optimizer, copied)]
    assert len(records[0]) == 3 and repr(records[0]) == repr(records[1])


def test_a_copy_alone_has_a_model_of_its_own() -> None:
    model = LINEAR.build()
    optimizer = teleported(LINEAR, model, "adam")
    copied, before = copy.deepcopy(optimizer), parameters(model)
    train(LINEAR, copied.model, copied)
    assert copied.teleport().accepted and optimizer.teleports == []
    laws.same_bits(parameters(model), before)
    laws.must_fail(laws.same_bits, parameters(copied.model), before)


def own_state(optimizer: TeleportedOptimizer) -> dict[str, Any]:
    own = extract(optimizer.state_dict(), "teleportation")[1]
    assert own is not None
    return own


def test_time_goes_on_where_another_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("meta_teleport.teleportation.progress.perf_counter", lambda: clock[0])
    optimizer = teleported(RELU, RELU.build(), batches=RELU.batch)
    clock[0] = 130.0
    saved = pickle.dumps(optimizer)
    clock[0] = 7.0
    assert own_state(pickle.loads(saved))["progress"]["elapsed"] == 30.0
    assert own_state(optimizer)["progress"]["elapsed"] == -93.0


def record_of_version_0_1(step: int, accepted: bool) -> dict[str, Any]:
    return {
        "step": step,
        "sizes": {"0": 0.5},
        "before": 1.0,
        "after": 2.0,
        "drift": 0.0,
        "seconds": 0.25,
        "accepted": accepted,
        "reason": "" if accepted else "the loss moved by 1.0e-02, and the tolerance is 1.0e-04",
        "signs": (),
    }


def state_of_version_0_1() -> dict[str, Any]:
    """What it saved after eight steps: a plateau that waits, an accepted teleport with two losses since, a refused one,
    and a reported loss that the schedule has not been asked about."""
    return {
        "taken": 8,
        "elapsed": 30.0,
        "loss": 5.75,
        "schedule": {"best": 5.5, "waited": 1, "seen": True},
        "history": {
            "records": [record_of_version_0_1(6, True), record_of_version_0_1(7, False)],
            "losses": [6.0, 5.75],
            "before": [9.0, 8.0, 7.0],
            "validation": 1.0,
            "validated": False,
        },
        "generator": None,
        "sight": {"rule": None, "loss": 5.75},
    }


def test_a_state_of_version_0_1_goes_on() -> None:
    model = RELU.build()
    optimizer = teleported(RELU, model, "sgd", Plateau(2), imbalance=inf)
    optimizer.load_state_dict({**SGD(model.parameters(), 0.0).state_dict(), "teleportation": state_of_version_0_1()})
    known = own_state(optimizer)["progress"]
    assert known.pop("elapsed") >= 30.0
    assert known == {
        "step": 8,
        "loss": 5.75,
        "teleports": 2,
        "spent": 0.5,
        "latest": 5.75,
        "losses": [6.0, 5.75],
    }
    closure_of(RELU, model, 0)()
    optimizer.step()  # the schedule is asked, and the loss that waits for it is the second that is no better
    assert [record.step for record in optimizer.teleports] == [6, 7, 9] and optimizer.teleports[2].accepted
    assert optimizer.teleports[0].signs == (NO_FASTER,)  # from 6 to 5.75, and from 9 to 6 before
    optimizer.report(validation=2.0)
    assert optimizer.teleports[2].signs == (WORSE_VALIDATION,)


def test_states_of_the_wrapper_and_of_its_base_are_interchangeable() -> None:
    model, plain = RELU.build(), RELU.build()
    optimizer, bare = teleported(RELU, model, "adam", 2), Adam(plain.parameters(), 0.1)
    train(RELU, model, optimizer)
    bare.load_state_dict(optimizer.state_dict())
    laws.same_bits(extract(bare.state_dict(), "teleportation")[0], snapshot(model, optimizer)["state"])
    before = len(optimizer.teleports)
    optimizer.load_state_dict(bare.state_dict())
    assert len(optimizer.teleports) == before
    assert optimizer.param_groups is optimizer.base.param_groups and optimizer.state is optimizer.base.state
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.base.param_groups[0]["lr"] == 0.5


SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "step": lambda o: StepLR(o, 2, 0.5),
    "cycle": lambda o: OneCycleLR(o, 0.1, total_steps=8),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=0, threshold=0.9),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_learning_rate_schedulers_work_as_on_the_base_optimizer(scheduler: str) -> None:
    def run(wrap: Callable[[nn.Module], Optimizer]) -> list[Any]:
        model = RELU.build()
        optimizer = wrap(model)
        rates, schedule = [], SCHEDULERS[scheduler](optimizer)
        for seed in range(6):
            value = optimizer.step(closure_of(RELU, model, seed))
            schedule.step(*([value.item()] if scheduler == "plateau" else []))
            rates.append(optimizer.param_groups[0]["lr"])
        return [rates, snapshot(model, optimizer)]

    bare = run(lambda model: BASES["momentum"](list(model.parameters())))
    laws.same_bits(run(lambda model: teleported(RELU, model, "momentum")), bare)
    assert len(set(bare[0])) > 1
    moved = run(lambda model: teleported(RELU, model, "momentum", 2))
    assert scheduler == "plateau" or moved[0] == bare[0]


def test_clipping_limits_the_gradient_at_the_moved_weights() -> None:
    model, limit, moves = LINEAR.build(), 0.1, []
    optimizer = teleported(LINEAR, model, "sgd", 1)
    optimizer.register_step_pre_hook(lambda *_: moves.append(parameters(model)))
    optimizer.register_step_post_hook(lambda *_: moves.append(parameters(model)))
    for seed in range(4):
        closure_of(LINEAR, model, seed)()
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        assert float(norm) > limit
        optimizer.step()
    for before, after in zip(moves[::2], moves[1::2], strict=True):
        moved = sum(float((after[name] - before[name]).square().sum()) for name in before) ** 0.5
        assert moved == pytest.approx(0.05 * limit, rel=1e-4)
    assert len(optimizer.teleports) == 4


@pytest.mark.parametrize("inside", [False, True], ids=["step outside autocast", "step inside autocast"])
@pytest.mark.parametrize("base", ["adam", "fused"])
@pytest.mark.parametrize("network", [RELU, LINEAR], ids=str)
def test_mixed_precision_with_a_gradient_scaler_whose_skipped_steps_are_no_steps(
    network: Network, base: str, inside: bool
) -> None:
    """Losses in bfloat16, parameters in float32: teleports keep the loss to the digits of the latter."""

    def batch(seed: int) -> network_cases.Batch:
        inputs, labels = network.batch(seed)
        return inputs.float(), labels.float()

    def run(wrap: Callable[[nn.Module], Any], poisoned: int = -1, half: bool = True) -> tuple[nn.Module, Any]:
        model, scaler = network.build().float(), torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer = wrap(model)
        for seed in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                value = network_cases.loss(model, batch(seed))
            scaler.scale(value).backward()
            if seed == poisoned:
                model[0].weight.grad[0, 0] = float("inf")
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
                scaler.step(optimizer)
            scaler.update()
        return model, optimizer

    def wrapped(schedule: Any) -> Callable[[nn.Module], Optimizer]:
        return lambda model: teleported(network, model, base, schedule, batches=lambda: batch(99), imbalance=inf)

    bare = snapshot(*run(lambda model: BASES[base](list(model.parameters()))))["params"]
    laws.same_bits(parameters(run(wrapped(()))[0]), bare)
    laws.must_fail(laws.same_bits, parameters(run(wrapped(()), half=False)[0]), bare)
    for poisoned in (-1, 1):
        model, optimizer = run(wrapped(2), poisoned)
        assert [r.step for r in optimizer.teleports] == [2, 4] and all(r.accepted for r in optimizer.teleports)
        assert all(r.drift < 1e-6 and r.after > r.before and r.sizes["0"] > 0.01 for r in optimizer.teleports)
        assert all(p.dtype == torch.float32 and bool(torch.isfinite(p).all()) for p in model.parameters())
    _, optimizer = run(wrapped(5), poisoned=1)
    assert optimizer.teleports == []


def test_hooks_run_once_per_step_and_before_the_teleport() -> None:
    model = RELU.build()
    optimizer = teleported(RELU, model, schedule=1)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda o, *_: calls.append(f"pre {len(optimizer.teleports)}"))
    optimizer.base.register_step_post_hook(lambda o, *_: calls.append(f"post {len(optimizer.teleports)}"))
    optimizer.register_state_dict_post_hook(lambda o, state: state.update(mark=1))
    optimizer.register_load_state_dict_pre_hook(lambda o, state: calls.append("load"))
    everywhere = register_optimizer_step_post_hook(lambda o, *_: calls.append(type(o).__name__))
    try:
        train(RELU, model, optimizer, range(2))
    finally:
        everywhere.remove()
    assert calls == ["pre 0", "post 0", "Adam", "pre 1", "post 1", "Adam"]
    assert optimizer.state_dict()["mark"] == 1
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls[-1] == "load"


def test_parameter_groups_can_be_added() -> None:
    model = LINEAR.build()
    optimizer = TeleportedOptimizer(
        SGD([model[0].weight], 0.1, momentum=0.9),
        model,
        LINEAR.symmetry,
        schedule=1,
        loss=network_cases.loss,
        batches=LINEAR.batch,
        imbalance=inf,
    )
    train(LINEAR, model, optimizer, range(2))
    assert len(optimizer.param_groups) == 1 and optimizer.teleports[-1].accepted
    optimizer.add_param_group({"params": model[1].weight, "lr": 0.2})
    optimizer.add_param_group({"params": iter([model[0].bias])})
    assert [group["lr"] for group in optimizer.base.param_groups] == [0.1, 0.2, 0.1]
    with pytest.raises(UserError, match="holds a tensor that is not a parameter of the model"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert len(optimizer.param_groups) == 3
    train(LINEAR, model, optimizer, range(2))
    assert optimizer.teleports[-1].accepted and len(optimizer.state) == 3


def test_gauges_need_neither_loss_nor_batches() -> None:
    model = LINEAR.build()
    optimizer = teleported(LINEAR, model, "adam", 2, objective="balanced", loss=None, batches=None)
    train(LINEAR, model, optimizer, range(2))
    v = torch.cat([model[0].weight, model[0].bias.unsqueeze(1)], 1)
    u = model[1].weight
    laws.assert_close((v @ v.mT).detach().unsqueeze(0), (u.mT @ u).detach().unsqueeze(0), 1e-10)
    assert optimizer.teleports[0].accepted and optimizer.teleports[0].drift != optimizer.teleports[0].drift


def test_plateaus_go_by_the_losses_of_closures_or_reports() -> None:
    for reports in (False, True):
        model = RELU.build()
        optimizer = teleported(RELU, model, "sgd", Plateau(3))
        optimizer.param_groups[0]["lr"] = 0.0
        for _ in range(8):
            closure = closure_of(RELU, model, 0)
            if reports:
                optimizer.report(loss=closure())
            optimizer.step(None if reports else closure)
        assert [r.step for r in optimizer.teleports] == [4, 7]
    with pytest.raises(UserError, match="Plateau has seen no loss for 4 steps"):
        optimizer = teleported(RELU, model, "sgd", Plateau(3))
        for _ in range(4):
            optimizer.step()


def test_a_budget_counts_the_seconds_of_teleports() -> None:
    model = RELU.build()
    optimizer = teleported(RELU, model, "sgd", Budget(1, seconds=1e-9))
    train(RELU, model, optimizer)
    assert [r.step for r in optimizer.teleports] == [1] and optimizer.teleports[0].seconds > 1e-5


def test_signs_are_read_from_what_is_reported() -> None:
    model = RELU.build()
    optimizer = teleported(RELU, model, "sgd", [3])
    optimizer.report(validation=torch.tensor(1.0))
    for step in range(12):
        closure_of(RELU, model, step)()
        optimizer.step()
        optimizer.report(loss=10.0 - min(step, 3))
    assert optimizer.teleports[0].signs == (NO_FASTER,)
    optimizer.report(validation=1.1)
    assert optimizer.teleports[0].signs == (NO_FASTER, WORSE_VALIDATION)


def failing(*_: Any) -> Any:
    raise RuntimeError("no more batches")


NAN = {"loss": lambda model, batch: network_cases.loss(model, batch) * float("nan")}
FAILURES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "batches": ({"batches": failing}, RuntimeError, "no more batches"),
    "loss": ({"loss": failing}, RuntimeError, "no more batches"),
    "nan loss": (NAN, UserError, "the loss is nan"),
    "nan objective": ({"objective": lambda loss, params: loss(params) * float("nan")}, UserError, "objective is nan"),
}


@pytest.mark.parametrize("base", ["adam", "lbfgs"])
@pytest.mark.parametrize("case", FAILURES)
def test_a_failing_teleport_leaves_everything_bitwise_as_it_was(case: str, base: str) -> None:
    options, error, text = FAILURES[case]
    model = LINEAR.build()
    optimizer = teleported(LINEAR, model, base, **options)
    train(LINEAR, model, optimizer)
    before = snapshot(model, optimizer)
    with pytest.raises(error, match=text):
        optimizer.teleport()
    laws.same_bits(snapshot(model, optimizer), before)
    assert optimizer.teleports == []
    accepted = teleported(LINEAR, model, base)
    accepted.teleport()
    laws.must_fail(laws.same_bits, snapshot(model, optimizer)["params"], before["params"])


def test_a_teleport_that_moves_the_loss_is_not_accepted() -> None:
    wrong = replace(LINEAR.symmetry.sites[0], group=FirstOrder(4))
    model, generator = LINEAR.build(), torch.Generator().manual_seed(0)
    optimizer = TeleportedOptimizer(
        Adam(model.parameters()),
        model,
        Symmetry((wrong,)),
        "random",
        loss=network_cases.loss,
        batches=LINEAR.batch,
        generator=generator,
    )
    train(LINEAR, model, optimizer)
    before = snapshot(model, optimizer)
    record = optimizer.teleport()
    laws.same_bits(snapshot(model, optimizer), before)
    assert not record.accepted and record.reason.startswith("the loss moved by") and record.drift > 1e-4
    assert record.sizes == {"0": 0.0} and record.seconds > 0


def test_a_teleport_is_not_accepted_if_the_state_does_not_stay_finite() -> None:
    model = LINEAR.build()
    optimizer = teleported(LINEAR, model, "adam")
    train(LINEAR, model, optimizer)
    optimizer.state[model[0].weight]["exp_avg"][0, 0] = float("inf")
    before = snapshot(model, optimizer)
    record = optimizer.teleport()
    assert not record.accepted and record.reason == "a gradient or the optimizer's state did not stay finite"
    laws.same_bits(snapshot(model, optimizer), before)


def other_model(model: nn.Module) -> Optimizer:
    return Adam(LINEAR.build().parameters())


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"base": Adam},
        "the base optimizer is the class Adam: give an instance of torch.optim.Optimizer",
    ),
    ({"base": other_model}, "the optimizer holds a tensor that is not a parameter of the model: make it from"),
    ({"state": "drop"}, "unknown state 'drop': choose one of keep, reset, transport"),
    ({"schedule": "daily"}, "'daily' is not a schedule"),
    ({"loss": None}, r"objective 'gradient_norm' needs a loss on a batch: give loss=\.\.\."),
    ({"objective": "speed"}, "unknown objective 'speed': choose one of gradient_norm"),
    ({"objective": "random"}, "objective 'random' draws elements: pass generator="),
    ({"direction": "sideways"}, "unknown direction 'sideways'"),
    ({"size": -1.0}, "size=-1.0: give a positive number"),
    ({"tolerance": float("nan")}, "tolerance=nan: give a number that is not negative"),
    ({"imbalance": nan}, "imbalance=nan: give a number of at least 1"),
    ({"imbalance": 0.5}, "imbalance=0.5: give a number of at least 1, or float"),
    ({"tolerance": "a"}, "tolerance='a': give a number"),
    ({"loss": 3.0}, r"loss is a float: give a function, loss\(model, batch\) and batches\(\)"),
    ({"batches": (1, 2)}, "batches is a tuple: give a function"),
    (
        {"base": lambda m: TeleportedOptimizer(Adam(m.parameters()), m, LINEAR.symmetry, "balanced", 5)},
        "teleports already: wrap the one inside it",
    ),
    ({"batches": None}, "objective 'gradient_norm' needs a loss on a batch"),
    ({"base": lambda model: Rprop(model.parameters())}, "how the state of Rprop moves is not known"),
    ({"symmetry": HEADS.symmetry}, "site 'query-key' moves 'in_proj.weight', which is not a parameter of the model"),
    ({"symmetry": Symmetry(())}, "the symmetry has no site"),
    ({"model": nn.Linear(2, 2).half()}, "parameter 'weight' is float16"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_at_the_door(options: dict[str, Any], text: str) -> None:
    model = LINEAR.build()
    before = parameters(model)
    base = options.get("base", lambda m: Adam(m.parameters()))
    arguments = {"model": model, "symmetry": LINEAR.symmetry, "loss": network_cases.loss, "batches": LINEAR.batch}
    arguments |= {"objective": "gradient_norm", "schedule": ()}
    arguments |= {key: value for key, value in options.items() if key != "base"}
    with pytest.raises(UserError, match=text):
        TeleportedOptimizer(base if base is Adam else base(model), **arguments)
    laws.same_bits(parameters(model), before)


def test_data_dependent_sites_are_refused() -> None:
    model = MLP((6, 5, 4))
    symmetry = mlp_symmetry(model, "general_linear")
    with pytest.raises(UserError, match="which is not the same linear map for every input"):
        TeleportedOptimizer(
            SGD(model.parameters(), 0.1), model, symmetry, "balanced", (), loss=network_cases.loss, batches=LINEAR.batch
        )


def test_a_sparse_gradient_is_refused_and_nothing_moves() -> None:
    model = nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Linear(4, 5))
    sites = {"pair": ("gl", [("0.weight", 1)], [("1.weight", 1)])}
    optimizer = TeleportedOptimizer(
        SGD(model.parameters(), 0.1), model, Symmetry.manual(model, sites), "balanced", 1, state="keep"
    )
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.base.step()
    before = parameters(model)
    with pytest.raises(UserError, match=r"the gradient of '0\.weight' is sparse and cannot move: use sparse=False"):
        optimizer.teleport()
    laws.same_bits(parameters(model), before)


def test_the_symmetry_of_a_wider_model_is_refused() -> None:
    wide, narrow = (nn.Sequential(nn.Linear(3, k), nn.ReLU(), nn.Linear(k, 2)) for k in (8, 4))
    symmetry = Symmetry.manual(wide, {"hidden": ("scaling", ["0.weight", "0.bias"], ["2.weight"])})
    with pytest.raises(UserError, match=r"moves '0\.weight', which has shape \(4, 3\) in this model"):
        TeleportedOptimizer(Adam(narrow.parameters()), narrow, symmetry, "balanced", 5)
