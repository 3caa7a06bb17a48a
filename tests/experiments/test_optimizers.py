"""The comparisons of optimizers: what they teleport, what they report, and the scripts from end to end."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

import meta_teleport as mt
from experiments.lab.image_training import Plan
from experiments.lab.intervals import student
from experiments.lab.teleport_log import TeleportLog
from experiments.optimizers import report, scaling_lengths
from experiments.optimizers import run as optimizers
from experiments.optimizers.bench import Bench, Entry, Method, Teleports
from experiments.optimizers.single_runs import Single, lbfgs
from experiments.optimizers.variants import NAMES, PLAIN
from meta_teleport.errors import UserError
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Jump
from meta_teleport.tasks.images import Images

ADAM = Method("Adam", torch.optim.Adam, 1e-2, 1, 5e-2)


@pytest.fixture(scope="module")
def bench() -> Bench:
    images = mt.load_images("digits").head(200, 60).flat
    return Bench(partial(MLP, (64, 8, 6, 10)), images, Teleports(count=2, batch=50, steps=3, scaling_size=0.1))


@pytest.fixture(scope="module")
def compared(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    entries = [Entry(ADAM, name, 1e-2) for name in NAMES]
    plan = Plan(3, 20, "sequential")
    return bench.compare(entries, (0, 1, 2), plan, tmp_path_factory.mktemp("runs") / "part.safetensors")


def test_variants_part_where_they_teleport_and_not_before(compared: dict[str, Any]) -> None:
    rows = {row["variant"]: row for row in compared["rows"]}
    for name in NAMES[1:]:
        own, plain = rows[name]["mean"]["train"], rows[PLAIN]["mean"]["train"]
        assert own[:2] == plain[:2]  # the start, and the epoch before the teleports
        assert own[3] != plain[3]


def test_drift_is_that_of_the_action(compared: dict[str, Any]) -> None:
    rows = {row["variant"]: row["teleports"] for row in compared["rows"]}
    assert rows[PLAIN] is None
    assert rows["state reset"]["size"] == rows["state reset"]["drift_max"] == 0
    assert rows["scaling"]["drift_max"] < 1e-5 < rows["published"]["drift_max"]
    for name in ("scaling", "published"):
        assert rows[name]["count"] == 2
        assert rows[name]["size"] > 0
    assert rows["scaling"]["size"] == pytest.approx(0.3)
    assert rows["scaling, random"]["size"] == pytest.approx(0.3)


def test_tuning_takes_the_best_of_the_grid_on_the_validation_images(bench: Bench, tmp_path: Path) -> None:
    entries = [Entry(ADAM, PLAIN, 1e-2), Entry(ADAM, "scaling", 1e-2)]
    best, table = bench.tune(entries, (1e-4, 1.0, 1e6), Plan(2, 20, "sequential"), tmp_path / "tuning.safetensors")
    assert [entry.lr for entry in best] == [1e-2, 1e-2]
    for row in table:
        assert row["losses"][1] == min(loss for loss in row["losses"] if loss is not None)
        assert not row["at_the_edge"]
    plan = Plan(2, 20, "sequential")
    curves, _ = bench.run(entries, (100, 101), plan, tmp_path / "again.safetensors", validation=True)
    assert table[0]["losses"][1] == pytest.approx(float(curves.test[-1, :2].mean()), rel=1e-4)


def test_a_run_that_diverges_never_wins_the_tuning(bench: Bench, tmp_path: Path) -> None:
    method = Method("SGD", torch.optim.SGD, 1e-2, 1, 5e-2)
    best, table = bench.tune([Entry(method, PLAIN, 1e-2)], (1.0, 1e30), Plan(2, 20, "sequential"), tmp_path / "kept")
    (kept, lost), (entry,) = table[0]["losses"], best
    assert math.isfinite(kept) and lost is None
    assert entry.lr == 1e-2 and table[0]["at_the_edge"]


def test_single_runs_start_alike_and_part(bench: Bench, tmp_path: Path) -> None:
    method = Method("L-BFGS", lbfgs, 1.0, 0, 5e-2)
    runs = {
        name: Single(bench, Entry(method, name, 1.0), 0, 200, 4).result(tmp_path)
        for name in (PLAIN, "scaling", "scaling, random", "state reset")
    }
    for run in runs.values():
        assert len(run["train"]) == 5
        assert run["train"][0] == runs[PLAIN]["train"][0] > run["train"][-1]
    assert len({run["train"][-1] for run in runs.values()}) == 4
    assert len(list(tmp_path.iterdir())) == 4
    kept = next(tmp_path.glob("*none*"))
    kept.write_text(json.dumps({"key": {}, "found": {"train": [7.0]}}))
    assert Single(bench, Entry(method, PLAIN, 1.0), 0, 200, 4).result(tmp_path) == {"train": [7.0]}


def test_published_settings() -> None:
    small, wide = (Images("x", *(torch.zeros(6, n), torch.arange(6) % 10) * 3) for n in (784, optimizers.WIDE_INPUTS))
    entries = optimizers.entries_of(small, list(NAMES))
    assert {e.method.name: (e.lr, e.method.epoch, e.method.size) for e in entries} == {
        "AdaGrad": (1e-2, 2, 1e-4),
        "momentum": (1e-3, 0, 5e-2),
        "RMSprop": (1e-4, 0, 5e-2),
        "Adam": (1e-4, 0, 5e-2),
        "SGD": (1e-2, 2, 1e-4),
    }
    assert len(entries) == 5 * len(NAMES) - 1  # SGD has no state to reset
    assert [e.lr for e in optimizers.entries_of(wide, list(NAMES))] == [2 * e.lr for e in entries]
    assert optimizers.build(wide).widths[1:3] == (128, 32)
    assert optimizers.build(small).widths[1:3] == (16, 10)


def test_interval_is_students() -> None:
    values = [0.1, -0.2, 0.4, 0.3, 0.0]
    mean, low, high = student(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean == pytest.approx(0.12)
    assert (low, high) == pytest.approx((expected.low, expected.high))


def row(variant: str, last: list[float | None], count: int = 0) -> dict[str, Any]:
    told = {"count": count, "drift_median": 1e-3, "drift_max": 2e-3, "size": 0.3} if count else None
    columns = {key: last for key in ("train", "test", "accuracy")}
    means = {key: [2.0, 1.0, 0.5] for key in columns}
    return {
        "method": "SGD",
        "variant": variant,
        "lr": 0.1,
        "epoch": 1,
        "early": columns,
        "last": columns,
        "mean": means,
        "teleports": told,
    }


def test_runs_that_diverge_are_counted_and_compared_with_nothing() -> None:
    content = {
        "data": "x",
        "seeds": 2,
        "tuned": {"epochs": 2, "rows": [row("none", [1.0, 2.0]), row("scaling", [1.0, None], 1)]},
    }
    table = report.markdown(content, "tuned")
    assert "1 of 2 diverged" in table
    assert "nan" not in table
    assert report.plot(content, "tuned").axes


def test_time_is_that_of_one_run_alone() -> None:
    seconds = {"step": {"SGD": 0.5}, "teleport": {"scaling": 7.0}}
    content = {"steps_per_epoch": 4, "seconds_per": seconds}
    assert report.seconds_at(content, row("none", [1.0])) == [0, 2, 4]
    assert report.seconds_at(content, row("scaling", [1.0], 3)) == [0, 2, 4 + 21]


def test_a_log_goes_on_after_a_stop_and_belongs_to_its_settings(tmp_path: Path) -> None:
    jump = Jump(torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([0.1]), torch.tensor([True]))
    first = TeleportLog(tmp_path / "log.json", ["a"])
    first.add("a", 0, jump)
    first.save()
    second = TeleportLog(tmp_path / "log.json", ["a"])
    second.add("a", 0, jump)  # the epoch that was cut off is run again
    second.add("a", 1, jump._replace(after=torch.tensor([2.0])))
    found = second.summary("a")
    assert found is not None
    assert (found["count"], found["drift_max"]) == (2, pytest.approx(0.5))
    with pytest.raises(UserError, match="belongs to a run with other settings: delete it"):
        TeleportLog(tmp_path / "log.json", ["b"])


def script(name: str, out: Path, *flags: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        f"experiments.optimizers.{name}",
        "--smoke",
        "--seeds",
        "2",
        "--out",
        str(out),
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stem = {"run": "optimizers", "beyond": "optimizers_beyond"}.get(name, name)
    assert (out / f"{stem}.md").read_text() in done.stdout
    return dict(json.loads((out / f"{stem}.json").read_text()))


@pytest.mark.slow
def test_optimizers_from_end_to_end_and_again(tmp_path: Path) -> None:
    flags = ("--variants", "none", "published", "scaling")
    found = script("run", tmp_path, *flags)
    (content,) = found["results"]
    assert found["smoke"]
    assert set(content["seconds_per"]["step"]) == {"AdaGrad", "momentum", "RMSprop", "Adam", "SGD"}
    for part in ("published", "tuned"):
        assert len(content[part]["rows"]) == 15
        assert (tmp_path / f"optimizers-digits-{part}.png").stat().st_size > 10_000
    assert script("run", tmp_path, *flags)["results"] == found["results"]


@pytest.mark.slow
def test_optimizers_past_the_paper_from_end_to_end(tmp_path: Path) -> None:
    (content,) = script("beyond", tmp_path)["results"]
    methods = {part: [r["method"] for r in content[part]["rows"]] for part in ("mini-batches", "large batches")}
    assert [methods["mini-batches"].count(name) for name in ("AdamW", "Muon")] == [6, 6]
    assert [methods["large batches"].count(name) for name in ("L-BFGS", "Levenberg-Marquardt")] == [4, 3]
    assert len(content["tuning"]) == 19


def test_a_changed_entry_has_another_name() -> None:
    entry = Entry(ADAM, PLAIN, 0.1)
    assert entry.key != replace(entry, lr=0.2).key != replace(entry, variant="scaling").key


def test_the_length_along_the_scalings_is_that_of_the_lowest_loss() -> None:
    plain = {"Adam": torch.tensor([1.0, 2.0]), "SGD": torch.tensor([1.0, 1.0])}
    rows = []
    for length, factor in ((0.01, 0.9), (0.03, 0.8), (0.1, float("nan"))):
        rows += scaling_lengths.compared(plain, {name: factor * losses for name, losses in plain.items()}, length)
    assert scaling_lengths.chosen(rows) == 0.03
    assert rows[2]["mean"] == pytest.approx(math.log(0.9))
    assert rows[-1] == {"length": 0.1, "optimizer": "all", "diverged": 2, "mean": None, "ci95": None}


@pytest.mark.slow
def test_lengths_along_the_scalings_from_end_to_end(tmp_path: Path) -> None:
    (content,) = script("scaling_lengths", tmp_path)["results"]
    assert len(content["rows"]) == 3 * 6
    small = content["rows"][:12]  # the longest steps may diverge here
    assert len({row["mean"] for row in small}) == len(small)
    assert script("scaling_lengths", tmp_path)["results"] == [content]
