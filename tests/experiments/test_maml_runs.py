"""MAML with teleports: the batched program is learn2learn's MAML, teleports are exact, training stops and resumes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import laws
import pytest
import torch
from torch import Tensor

from experiments.lab.progress import Stopped
from experiments.maml import training as maml_training
from experiments.maml.runs import SIZES, TELEPORTS, Runs, adapt, begun, elements_of, measure, tasks_of, teleported
from experiments.maml.training import Plan, meta_train
from meta_teleport.errors import UserError
from meta_teleport.models import MLP
from meta_teleport.params import dot
from meta_teleport.tasks.few_shot import FewShot, FewShotTasks
from meta_teleport.tasks.tasksets import learn2learn

PLAN = Plan(teleports=("none", "random"), rates=(0.1, 0.5), updates=4, tasks=2, steps=2)
FAMILIES = [FewShot(ways=2, shots=2, queries=3, pixels=4, hidden=(5, 4), held_out=[c, c + 1]) for c in (0, 1, 2)]


def double(tasks: FewShotTasks) -> FewShotTasks:
    return tasks._map(Tensor.double)


def runs_of(teleports: tuple[str, ...], rates: tuple[float, ...] = (0.1, 0.5)) -> Runs:
    runs = begun(FAMILIES, teleports, rates)
    params = {name: p.double().requires_grad_() for name, p in runs.params.items()}
    return runs._replace(params=params, rates=runs.rates.double())


def one_by_one(runs: Runs, tasks: FewShotTasks, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Query losses ``(runs, tasks)`` and the gradient of their sum, by learn2learn alone."""
    maml, each = learn2learn().algorithms.MAML, tasks.count // len(FAMILIES)
    losses, gradients = [], []
    for r in range(len(runs.rates)):
        model = MLP(tasks.model.widths, bias=True).double()
        model.load_state_dict({name: p[r].detach() for name, p in runs.params.items()})
        outer = maml(model, lr=float(runs.rates[r]))
        own = []
        for i in range(each):
            data = {name: t[int(runs.seeds[r]) * each + i] for name, t in tasks.data.items()}
            learner = outer.clone()
            for _ in range(steps):
                learner.adapt(torch.nn.functional.cross_entropy(learner(data["inputs"]), data["labels"]))
            own.append(torch.nn.functional.cross_entropy(learner(data["query_inputs"]), data["query_labels"]))
        losses.append(torch.stack(own))
        gradients.append(torch.autograd.grad(losses[-1].sum(), list(model.parameters())))
    columns = [torch.stack(column) for column in zip(*gradients, strict=True)]
    return torch.stack(losses).detach(), dict(zip(runs.params, columns, strict=True))


def test_the_batched_program_is_learn2learns_maml_run_by_run_and_task_by_task() -> None:
    tasks, runs = double(tasks_of(FAMILIES, 2, 7, "train")), runs_of(("none",))
    *_, (rows, ends) = adapt(runs, tasks, 3)
    loss = rows.query_loss(ends)
    gradients = torch.autograd.grad(loss.sum(), list(runs.params.values()))
    expected, theirs = one_by_one(runs, tasks, 3)
    laws.assert_close(loss.detach().view(6, 2), expected, 1e-12)
    for ours, gradient in zip(gradients, theirs.values(), strict=True):
        laws.assert_close(ours, gradient, 1e-10)
    *_, (rows, ends) = adapt(runs, tasks, 3, second_order=False)
    first = torch.autograd.grad(rows.query_loss(ends).sum(), list(runs.params.values()))
    laws.must_fail(laws.assert_close, first[0], theirs["layers.0.weight"], 1e-3)


def test_runs_of_a_seed_begin_at_the_same_place_and_see_the_same_tasks() -> None:
    runs, tasks = runs_of(("none", "balanced")), double(tasks_of(FAMILIES, 2, 7, "train"))
    assert runs.seeds.tolist() == [0, 1, 2] * 4
    assert runs.rates.tolist() == pytest.approx([0.1] * 3 + [0.5] * 3 + [0.1] * 3 + [0.5] * 3)
    assert runs.teleports == ("none",) * 6 + ("balanced",) * 6
    weights = runs.params["layers.0.weight"]
    assert torch.equal(weights[0], weights[9]) and not torch.equal(weights[0], weights[1])
    ((rows, _),) = adapt(runs, tasks, 0)
    assert torch.equal(rows.data["inputs"][:6], rows.data["inputs"][18:])
    assert torch.equal(rows.data["inputs"][:6], tasks.data["inputs"])
    again = double(tasks_of(FAMILIES, 2, 7, "train"))
    assert torch.equal(again.data["inputs"], tasks.data["inputs"])
    assert not torch.equal(double(tasks_of(FAMILIES, 2, 8, "train")).data["inputs"], tasks.data["inputs"])


def rows_of(runs: Runs, tasks: FewShotTasks) -> tuple[FewShotTasks, dict[str, Tensor]]:
    ((rows, params),) = adapt(runs, tasks, 0)
    return rows, params


@pytest.mark.parametrize("kind", TELEPORTS[1:])
def test_teleports_leave_the_function_alone_and_do_what_they_are_for(kind: str) -> None:
    tasks, plain = double(tasks_of(FAMILIES, 3, 7, "train")), runs_of(("none",))
    rows, before = rows_of(plain, tasks)
    _, after = rows_of(plain._replace(teleports=(kind,) * 6), tasks)
    laws.assert_close(rows.query_outputs(after), rows.query_outputs(before), 1e-11)
    assert float((after["layers.0.weight"] - before["layers.0.weight"]).detach().abs().max()) > 1e-3

    def gradient_norm(params: dict[str, Tensor]) -> Tensor:
        loss = rows.loss(params, torch.zeros(rows.count).long()).sum()
        found = dict(zip(params, torch.autograd.grad(loss, list(params.values()), retain_graph=True), strict=True))
        return dot(found, found)

    growth = gradient_norm(after) / gradient_norm(before)
    if kind.startswith("gradient"):
        assert float(growth.min()) > (1.3 if kind == "gradient norm" else 2.0)
    if kind == "balanced":
        assert bool((dot(after, after) < dot(before, before)).all())
        w, b, u = (after[f"layers.{i}"] for i in ("0.weight", "0.bias", "1.weight"))
        laws.assert_close(w.square().sum(-1) + b.square(), u.square().sum(1), 1e-2)


@pytest.mark.parametrize("kind", [kind for kind in SIZES if kind.startswith("random")])
def test_random_teleports_are_as_long_as_the_ascent(kind: str) -> None:
    tasks = double(tasks_of(FAMILIES, 3, 7, "train"))
    rows, params = rows_of(runs_of(("none",)), tasks)
    found = []
    for name, seed in ((kind, 1), (kind, 2), (kind.replace("random", "gradient norm"), 3)):

        def loss(params: dict[str, Tensor]) -> Tensor:
            return rows.loss(params, torch.zeros(rows.count).long())

        elements = elements_of(name, rows.symmetry, params, loss, torch.Generator().manual_seed(seed))
        found.append([g.log() for g in elements])
    for first, second, searched in zip(*found, strict=True):
        laws.assert_close(first.norm(dim=1), searched.norm(dim=1), 1e-10)
        assert not torch.allclose(first, second) and not torch.allclose(first, searched)
        assert not torch.allclose(first[0] / first[0].norm(), first[1] / first[1].norm())


def test_the_outer_gradient_passes_through_the_action_with_its_elements_fixed() -> None:
    tasks, runs = double(tasks_of(FAMILIES, 1, 7, "train")), runs_of(("gradient norm",), (0.1,))
    rows, plain = rows_of(runs._replace(teleports=("none",) * 3), tasks)
    _, moved = rows_of(runs, tasks)
    factors = {n: (moved[n] / plain[n]).detach() for n in moved}
    (gradient,) = torch.autograd.grad(rows.query_loss(moved).sum(), [runs.params["layers.0.weight"]])
    leaf = moved["layers.0.weight"].detach().requires_grad_()
    (at_moved,) = torch.autograd.grad(rows.query_loss({**moved, "layers.0.weight": leaf}).sum(), [leaf])
    laws.assert_close(gradient, factors["layers.0.weight"] * at_moved, 1e-10)
    laws.must_fail(laws.assert_close, gradient, at_moved, 1e-3)


def test_rows_of_several_kinds_come_back_in_their_order() -> None:
    tasks = double(tasks_of(FAMILIES, 2, 7, "train"))
    rows, params = rows_of(runs_of(("none",), (0.1,)), tasks)
    kinds = ["none", "balanced", "none", "gradient norm", "balanced", "none"]
    mixed = teleported(params, kinds, rows, torch.Generator())
    alone = {kind: teleported(params, [kind] * 6, rows, torch.Generator()) for kind in set(kinds)}
    for i, kind in enumerate(kinds):
        for name, p in mixed.items():
            laws.assert_close(p[i], alone[kind][name][i], 1e-12)


def test_measuring_is_the_same_loop() -> None:
    tasks, runs = double(tasks_of(FAMILIES, 2, 7, "held_out")), runs_of(("none", "balanced"))
    measured = measure(runs, tasks, 3)
    for i, (rows, params) in enumerate(adapt(runs, tasks, 3)):
        laws.assert_close(measured.loss[i].flatten(), rows.query_loss(params).detach(), 1e-12)
        assert torch.equal(measured.accuracy[i].flatten(), rows.query_accuracy(params))
    assert float(measured.drift.max()) < 1e-12
    assert bool((measured.growth[:6] == 1).all()) and not bool((measured.growth[6:] == 1).any())
    moved = runs.select([0, 1, 2], "balanced")
    assert moved.teleports == ("balanced",) * 3 and not moved.params["layers.0.weight"].requires_grad


def test_meta_training_lowers_the_loss_after_adaptation(tmp_path: Path) -> None:
    plan = Plan(teleports=("none",), rates=(0.5,), updates=120, tasks=4, steps=2, outer_rate=2e-2)
    runs, _ = meta_train(FAMILIES, plan, tmp_path / "kept.safetensors", "")
    tasks = tasks_of(FAMILIES, 20, 99, "train")
    before = measure(begun(FAMILIES, ("none",), (0.5,)), tasks, 2).loss[-1].mean()
    assert float(measure(runs, tasks, 2).loss[-1].mean()) < 0.9 * float(before)


def test_a_run_that_diverges_harms_no_other(tmp_path: Path) -> None:
    families = FAMILIES[:2]
    alone = Plan(teleports=("none",), rates=(0.1,), updates=4, tasks=2, steps=2)
    beside = Plan(teleports=("none",), rates=(0.1, 1e30), updates=4, tasks=2, steps=2)
    first, _ = meta_train(families, alone, tmp_path / "a.safetensors", "")
    both, _ = meta_train(families, beside, tmp_path / "b.safetensors", "")
    for name, p in first.params.items():
        laws.assert_close(both.params[name][:2].double(), p.double(), 1e-5)


def stop_after(updates: int) -> Any:
    """In place of ``stopping``: asks to stop at the end of that update."""
    asked = iter(range(1000))

    @contextmanager
    def stopping() -> Iterator[Any]:
        yield lambda: next(asked) >= 2 * (updates - 1)

    return stopping


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = meta_train(FAMILIES, PLAN, tmp_path / "whole.safetensors", "digits")
    kept = tmp_path / "kept.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(maml_training, "stopping", stop_after(2))
        with pytest.raises(Stopped, match="digits: stopped after update 2; the same command goes on from there"):
            meta_train(FAMILIES, PLAN, kept, "digits")
    resumed, _ = meta_train(FAMILIES, PLAN, kept, "digits")
    for name, p in whole.params.items():
        assert torch.equal(p, resumed.params[name])
    other = Plan(teleports=("none", "random"), rates=(0.1, 0.5), updates=5, tasks=2, steps=2)
    with pytest.raises(UserError) as error:
        meta_train(FAMILIES, other, kept, "digits")
    assert str(error.value) == f"{kept} belongs to a run with other plan: delete it, or choose another --out"
