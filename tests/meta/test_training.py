"""The outer loop: fresh tasks when they are due, learning, resuming, refusals."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from meta_teleport.errors import UserError
from meta_teleport.learned.lstm import LSTMUpdate, LSTMUpdateTele
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.loop import train
from meta_teleport.meta.trainer import Trainer
from meta_teleport.meta.unroll import NEVER, start, unroll
from meta_teleport.rules.classical import GradientDescent
from meta_teleport.rules.rule import Rule, initialized, shapes_of
from meta_teleport.runs.checkpoint import load_tensors, save_tensors
from meta_teleport.runs.run import Run
from meta_teleport.tasks.regression import Regression

FAMILY = Regression(width=4)
SMALL = TrainingConfig(meta_steps=6, tasks=6, window=2, horizon=6, save_every=1, log_every=1)


def rule(kind: type[LSTMUpdate | LSTMUpdateTele] = LSTMUpdateTele, seed: int = 0) -> Rule:
    tasks = FAMILY.sample(1, torch.Generator().manual_seed(0))
    with initialized(seed):
        return kind(shapes_of(tasks.params, tasks.symmetry), hidden_size=6)


def run_in(folder: Path) -> Run:
    config = {"task": {}, "rule": {"class_path": "x", "init_args": {}}, "training": {}, "seed": 0, "dtype": "float32"}
    return Run.create(folder, config)


def ages(training: TrainingConfig, windows: int) -> list[list[int]]:
    trainer, seen = Trainer(rule(), FAMILY, training, seed=0), []
    for _ in range(windows):
        trainer.step()
        seen.append(trainer.pools[0].carry.step.tolist())
    return seen


def test_staggered_tasks_mix_early_and_late_steps() -> None:
    seen = ages(SMALL, 6)
    assert seen[0] == [2] * 6
    assert all(sorted(set(row)) == [2, 4, 6] for row in seen[2:])


def test_tasks_in_phase_are_replaced_together() -> None:
    assert ages(replace(SMALL, staggered=False), 4) == [[2] * 6, [4] * 6, [6] * 6, [2] * 6]


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_learning_rates_fall_as_a_cosine_or_not_at_all(decay: Any) -> None:
    training = replace(SMALL, decay=decay, lr_update=3e-3, lr_element=1e-2)
    trainer = Trainer(rule(), FAMILY, training, seed=0)
    used = torch.optim.Adam([{"params": [torch.zeros(1)], "lr": lr} for lr in (3e-3, 1e-2)])
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(used, training.meta_steps)
    for _ in range(training.meta_steps):
        trainer.step()
        expected = cosine.get_last_lr() if decay == "cosine" else [3e-3, 1e-2]
        assert [group["lr"] for group in trainer.adam.param_groups] == pytest.approx(expected, rel=1e-12)
        used.step()
        cosine.step()


def test_staggered_first_lives_are_all_multiples_of_the_window_and_later_ones_whole() -> None:
    (pool,) = Trainer(rule(), FAMILY, SMALL, seed=0).pools
    assert pool.due.tolist() == [2, 4, 6, 2, 4, 6]
    pool.carry = pool.carry._replace(step=pool.due)
    pool.renew()
    assert pool.due.tolist() == [6] * 6


def test_a_penalty_is_part_of_the_meta_loss() -> None:
    plain, punished = (
        Trainer(rule(), FAMILY, replace(SMALL, increase_penalty=weight, window=6), seed=0).step()
        for weight in (0.0, 10.0)
    )
    before = start(rule(), FAMILY.sample(6, torch.Generator().manual_seed(0))).initial
    rises = torch.cat([before[None], plain.losses]).log().diff(dim=0).clamp(min=0)
    assert float(rises.max()) > 0
    torch.testing.assert_close(punished.meta_loss, plain.meta_loss + 10 * rises.mean())


@pytest.mark.parametrize("estimator", ["bptt", "es", "pes"])
def test_errors_take_the_place_of_losses(estimator: Any) -> None:
    noisy = Regression(width=4, points=6, batch=2, labels="teacher", noise=0.5, allow_drift=True)
    settings = replace(SMALL, estimator=estimator, pairs=3, sigma=1e-9, increase_penalty=1.0)
    on_losses, on_errors = (
        Trainer(rule(), noisy, replace(settings, errors=errors), seed=0, dtype=torch.float64)
        for errors in (False, True)
    )
    tasks = on_errors.pool.tasks
    found, other = on_errors.step(), on_losses.step()
    own = rule().double()
    phi = {name: p.detach() for name, p in own.named_parameters()}
    expected, _ = unroll(own, phi, tasks, start(own, tasks), SMALL.window, errors=True)
    torch.testing.assert_close(found.losses, expected)
    assert not torch.allclose(found.losses, other.losses)
    errors = torch.cat([tasks.total_loss(tasks.params)[None], expected]).log()
    meta_loss = (errors[1:] - errors[0]).mean() + errors.diff(dim=0).clamp(min=0).mean()
    torch.testing.assert_close(found.meta_loss, meta_loss)


def test_a_replaced_task_is_a_fresh_one() -> None:
    trainer = Trainer(rule(), FAMILY, replace(SMALL, staggered=False, horizon=2), seed=0)
    (pool,) = trainer.pools
    trainer.step()
    before = pool.tasks.data["inputs"].clone()
    trainer.step()
    assert (pool.tasks.data["inputs"] != before).all()
    fresh = pool.tasks.loss(pool.tasks.params, pool.carry.step)
    torch.testing.assert_close(pool.carry.initial, fresh)


@pytest.mark.parametrize("kind", [LSTMUpdate, LSTMUpdateTele])
def test_meta_training_learns(kind: type[LSTMUpdate | LSTMUpdateTele]) -> None:
    before, after, told = rule(kind), rule(kind), []
    train(
        after, FAMILY, TrainingConfig(meta_steps=60, tasks=16, window=5, horizon=10, lr_update=1e-2), report=told.append
    )
    assert [progress.meta_step for progress in told] == list(range(1, 61))
    tasks = FAMILY.sample(64, torch.Generator().manual_seed(1), "held_out")
    with torch.no_grad():
        ends = [unroll(r, dict(r.named_parameters()), tasks, start(r, tasks), 10)[0][-1] for r in (before, after)]
    assert (ends[1].log() - ends[0].log()).mean() < -0.03


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"staggered": False, "second_order": True},
        {"estimator": "es", "pairs": 3},
        {"estimator": "pes", "pairs": 2, "increase_penalty": 0.1},
    ],
)
def test_resumed_is_uninterrupted_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    training = replace(SMALL, **options)
    whole, parts = rule(), rule(seed=5)
    train(whole, FAMILY, training, run=run_in(tmp_path / "whole"))
    run, stops = run_in(tmp_path / "parts"), iter([False, False, False, True])
    first = rule()
    assert not train(first, FAMILY, training, run=run, should_stop=lambda: next(stops)).finished
    assert train(parts, FAMILY, training, run=run, resume=True).finished
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    rows = [Run.open(tmp_path / name).metrics() for name in ("whole", "parts")]
    assert [row["meta_loss"] for row in rows[0]] == [row["meta_loss"] for row in rows[1]]
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("estimator", ["bptt", "es", "pes"])
def test_a_state_of_version_0_1_resumes_bit_for_bit(estimator: Any, tmp_path: Path) -> None:
    """Such a state says which tasks are alive, not when the others failed; one has."""
    training = replace(SMALL, estimator=estimator, pairs=2)
    stops = iter([False, False, False, True])
    train(rule(), FAMILY, training, run=run_in(tmp_path / "new"), should_stop=lambda: next(stops))
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    tensors, numbers = load_tensors(tmp_path / "new/training.safetensors")
    steps = [name for name, t in tensors.items() if t.dtype == torch.long and t.tolist() == [NEVER] * 6]
    assert len(steps) == (2 if estimator == "pes" else 1)
    failed = torch.arange(6) == 1
    failed_at = {name: torch.where(failed, 3, tensors[name]) for name in steps}
    save_tensors(tmp_path / "new/training.safetensors", {**tensors, **failed_at}, numbers)
    save_tensors(tmp_path / "old/training.safetensors", {**tensors, **dict.fromkeys(steps, ~failed)}, numbers)
    phis = []
    for name in ("new", "old"):
        resumed = rule(seed=5)
        assert train(resumed, FAMILY, training, run=Run.open(tmp_path / name), resume=True).finished
        phis.append(list(resumed.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*phis, strict=True))


def stopped_and_whole(tmp_path: Path) -> list[Path]:
    """A run that was stopped after four of six meta-steps, and one that was not."""
    stops = iter([False, False, False, False, True])
    train(rule(), FAMILY, SMALL, run=run_in(tmp_path / "parts"), should_stop=lambda: next(stops))
    train(rule(), FAMILY, SMALL, run=run_in(tmp_path / "whole"))
    return [tmp_path / "parts", tmp_path / "whole"]


def same(parts: Path, whole: Path) -> bool:
    names = sorted(path.name for path in whole.glob("*.safetensors"))
    assert len(names) == 4 and names == sorted(path.name for path in parts.glob("*.safetensors"))
    rows = [[{**row, "task_steps_per_second": 0} for row in Run.open(folder).metrics()] for folder in (parts, whole)]
    return rows[0] == rows[1] and all((parts / name).read_bytes() == (whole / name).read_bytes() for name in names)


@pytest.mark.parametrize("bad", [1, 2])
def test_a_run_whose_newest_states_have_gone_bad_goes_on_from_the_one_before(bad: int, tmp_path: Path) -> None:
    parts, whole = stopped_and_whole(tmp_path)
    for name in ("training.safetensors", "training.1.safetensors")[:bad]:
        content = bytearray((parts / name).read_bytes())
        content[-1] ^= 1
        (parts / name).write_bytes(content)
    with pytest.warns(UserWarning, match=rf"going on from training\.{bad}\.safetensors, meta-step {4 - bad}$"):
        assert train(rule(seed=5), FAMILY, SMALL, run=Run.open(parts), resume=True).finished
    assert same(parts, whole)


def test_metrics_that_are_ahead_of_the_state_are_cut_to_it(tmp_path: Path) -> None:
    parts, whole = stopped_and_whole(tmp_path)
    shutil.copy(whole / "metrics.jsonl", parts / "metrics.jsonl")
    assert train(rule(seed=5), FAMILY, SMALL, run=Run.open(parts), resume=True).finished
    assert same(parts, whole)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    parts, whole = stopped_and_whole(tmp_path)
    shutil.rmtree(parts)
    shutil.copytree(whole, parts)
    assert train(rule(seed=5), FAMILY, SMALL, run=Run.open(parts), resume=True).meta_step == 6
    assert same(parts, whole)


def test_a_trained_rule_is_never_overwritten_by_a_fresh_start(tmp_path: Path) -> None:
    parts, _ = stopped_and_whole(tmp_path)
    before = (parts / "rule.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds a training already: go on with it by resume=True"):
        train(rule(), FAMILY, SMALL, run=Run.open(parts))
    for path in parts.glob("training*"):
        path.unlink()
    for resume, message in ((True, r"no state to go on from \(training.safetensors is missing\)"), (False, "already")):
        with pytest.raises(UserError, match=message):
            train(rule(), FAMILY, SMALL, run=Run.open(parts), resume=resume)
    assert (parts / "rule.safetensors").read_bytes() == before
    (parts / "rule.safetensors").unlink()
    assert train(rule(), FAMILY, SMALL, run=Run.open(parts), resume=True).meta_step == 6


def test_a_run_is_for_one_training_at_a_time_and_free_after_it(tmp_path: Path) -> None:
    run, seen = run_in(tmp_path / "run"), []

    def look(progress: object) -> None:
        with pytest.raises(UserError, match="is in use by process"):
            train(rule(), FAMILY, SMALL, run=Run.open(run.folder), resume=True)
        seen.append(progress)

    train(rule(), FAMILY, SMALL, run=run, report=look)
    assert len(seen) == 6 and len(run.metrics()) == 6
    with pytest.raises(ZeroDivisionError):
        train(rule(), FAMILY, replace(SMALL, meta_steps=7), run=run, resume=True, report=lambda progress: 1 // 0)
    Run.open(run.folder, lock=True).close()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="GradientDescent has no meta-parameters"):
        train(GradientDescent(0.1), FAMILY, SMALL)
    with pytest.raises(UserError, match="horizon 7 is no multiple of window 2"):
        replace(SMALL, horizon=7)
    with pytest.raises(UserError, match=r"training\.tasks is 0: give 1 or more"):
        replace(SMALL, tasks=0)
    with pytest.raises(UserError, match=r"training\.floor is 1.0: give a fraction of the initial loss"):
        replace(SMALL, floor=1.0)
    with pytest.raises(UserError, match=r"training\.lr_update is -1.0: give 0 or more"):
        replace(SMALL, lr_update=-1.0)
    with pytest.raises(UserError, match=r"training\.increase_penalty is -1.0: give 0 or more"):
        replace(SMALL, increase_penalty=-1.0)
    with pytest.raises(UserError, match="unknown estimator 'reinforce': choose one of bptt, es, pes"):
        replace(SMALL, estimator="reinforce")
    for options in ({"sigma": 0.0, "pairs": 2}, {"pairs": 7}, {"pairs": 0}):
        with pytest.raises(UserError, match="do not perturb 6 tasks: give sigma > 0, and pairs from 1 to"):
            replace(SMALL, estimator="pes", **options)
    with pytest.raises(UserError, match="unknown objective 'cube': choose one of sum, log, end"):
        replace(SMALL, objective="cube")
    run = run_in(tmp_path / "run")
    train(rule(), FAMILY, SMALL, run=run)
    with pytest.raises(UserError, match="another rule, family, seed or version"):
        train(rule(LSTMUpdate), FAMILY, SMALL, run=run, resume=True)
