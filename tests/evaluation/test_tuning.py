import json
from functools import partial
from itertools import product

import pytest
import torch
from evaluation_cases import Quadratic, generator

from meta_teleport.evaluation.evaluation import evaluate
from meta_teleport.evaluation.measurement import measure
from meta_teleport.evaluation.methods import BASELINES, TELEPORT_BASELINES, Baseline, baseline
from meta_teleport.evaluation.statistics import log10
from meta_teleport.evaluation.tuning import (
    ASCENT,
    FILE,
    REFINED,
    SEED,
    TASKS,
    decades,
    fingerprint,
    moved_on,
    tune,
)
from meta_teleport.rules.classical import GradientDescent
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.regression import Regression


class Calls(list):
    def __call__(self, *arguments):
        self.append(arguments)


@pytest.mark.parametrize("a", [1.0, 1e3, 1e9])
def test_the_best_step_size_is_found_even_far_from_the_grid(a):
    found = tune(Quadratic(a), 4, torch.float64)
    assert found["gd"]["lr"] * a == pytest.approx(1.0, rel=0.35)


def test_more_tuning_never_scores_worse():
    found = tune(Functions("rosenbrock"), 12)
    assert set(found) == {"gd", "gd-warmup", "momentum", "adam", *TELEPORT_BASELINES}
    assert found["gd+ascent"]["score"] < found["gd"]["score"] + 0.2
    assert len(found["gd+random"]["sizes"]) == len(found["gd+random"]["at"])
    assert found["gd+random"]["at"] == found["gd+ascent"]["at"]


def score(name, settings, tasks, horizon):
    """The criterion for one setting, run alone."""
    method = baseline(name, settings, generator(SEED))
    return float(log10(measure(method, tasks, horizon, warm_up=False).losses[-1]).mean())


@pytest.mark.parametrize("name", ["gd", "momentum", "adam"])
@pytest.mark.parametrize("family", [Quadratic(0.3), Quadratic(40.0), Functions("rosenbrock")])
def test_the_step_size_is_the_best_of_its_whole_grid(family, name):
    horizon = 6
    found = tune(family, horizon, torch.float64)[name]
    tasks = family.sample(TASKS, generator(SEED), "train", torch.float64)
    grid = BASELINES[name].grids["lr"]
    scores = {lr: score(name, {"lr": lr}, tasks, horizon) for lr in grid}
    best = min(scores, key=scores.get)
    middle = grid[len(scores) // 2]
    assert best not in (middle, *grid[:: len(scores) - 1]), "the grid decides nothing"
    assert found["lr"] == best and found["score"] == pytest.approx(scores[best], rel=1e-9)


@pytest.mark.parametrize(("name", "horizon", "at"), [("booth", 3, [0, 1, 2]), ("rosenbrock", 2, [0])])
def test_ascents_are_the_best_of_all_schedules_sizes_and_step_sizes(name, horizon, at):
    family = Functions(name)
    found = tune(family, horizon, torch.float64)
    tasks = family.sample(TASKS, generator(SEED), "train", torch.float64)
    half, lr = tasks.select(torch.arange(TASKS // 2)), found["gd"]["lr"]
    points = [
        {"at": at, "size": s, "lr": lr * f} for at in ([0], [*range(horizon)]) for s, f in product(*ASCENT.values())
    ]
    scores = [score("gd+ascent", point, half, horizon) for point in points]
    best, chosen = points[scores.index(min(scores))], found["gd+ascent"]
    assert (chosen["at"], chosen["size"]) == (best["at"], best["size"]) and chosen["at"] == at
    refined = {best["lr"] * f: score("gd+ascent", {**best, "lr": best["lr"] * f}, tasks, horizon) for f in REFINED}
    assert chosen["score"] == pytest.approx(min(refined.values()), rel=1e-9)


@pytest.mark.parametrize(("best", "low"), [(1.0, 1e-2), (10.0, 1.0), (100.0, 1.0), (1e3, 1.0), (1e4, 1e2)])
def test_a_grid_moves_by_half_of_its_length_where_its_end_is_best(best, low):
    assert moved_on(decades(0, 4, 1), best) == pytest.approx([low * 10**i for i in range(5)], rel=1e-12)


def test_a_network_without_sites_has_no_teleports():
    assert set(tune(Quadratic(), 2)) == {"gd", "gd-warmup", "momentum", "adam"}


def test_a_baseline_more_is_one_entry_in_the_table(tmp_path, monkeypatch):
    first = tune(Quadratic(2.0), 2, torch.float64, folder=tmp_path)
    late = partial(GradientDescent, warmup=1, warmup_lr=0.0)
    monkeypatch.setitem(BASELINES, "gd-late", Baseline(late, {"lr": decades(-1, 1)}, times="gd"))
    found = tune(Quadratic(2.0), 2, torch.float64, folder=tmp_path)
    chosen = found.pop("gd-late")
    assert found == first and chosen["lr"] in [found["gd"]["lr"] * factor for factor in decades(-1, 1)]
    assert chosen["score"] > found["gd"]["score"]
    rows = evaluate(None, Quadratic(2.0), horizon=2, tasks=4, steps=2, dtype=torch.float64, folder=tmp_path)
    assert rows.methods["gd-late"].rule.warmup == 1 and list(rows.methods)[-1] == "gd-late"


def test_the_file_is_used_again_and_made_again_for_another_family_dtype_or_horizon(tmp_path):
    first, again = Calls(), Calls()
    found = tune(Quadratic(1.0), 2, folder=tmp_path, report=first)
    assert len(first) == 4 and first[-1] == ("tuning", 4, 4)
    assert tune(Quadratic(1.0), 2, folder=tmp_path, report=again) == found
    assert not again
    for family, horizon, dtype in (
        (Quadratic(2.0), 2, torch.float32),
        (Quadratic(1.0), 3, torch.float32),
        (Quadratic(1.0), 2, torch.float64),
    ):
        other = Calls()
        tune(family, horizon, dtype, folder=tmp_path, report=other)
        assert len(other) == 4
    tune(Quadratic(1.0), 2, folder=tmp_path, report=again)
    assert not again
    assert len(json.loads((tmp_path / FILE).read_text())["entries"]) == 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 0, "entries": []}', '{"schema": 1}'])
def test_a_file_that_cannot_be_read_is_made_again(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    calls = Calls()
    tune(Quadratic(), 2, folder=tmp_path, report=calls)
    assert calls and json.loads((tmp_path / FILE).read_text())["schema"] == 1


def entries(folder):
    return json.loads((folder / FILE).read_text())["entries"]


def test_settings_that_somebody_else_made_or_changed_are_tuned_again(tmp_path, monkeypatch):
    found = tune(Quadratic(), 2, folder=tmp_path)
    own = (tmp_path / FILE).read_text()
    useless = {name: {**settings, "lr": 1e-12} for name, settings in found.items()}

    def changed(how):
        content = json.loads(own)
        how(content["entries"][0])
        (tmp_path / FILE).write_text(json.dumps(content))

    for how in (
        lambda entry: entry.update(settings=useless),
        lambda entry: entry.update(settings=useless, seal="0" * 64),
        lambda entry: entry.update(settings=useless, seal=None),
        lambda entry: entry.update(settings=useless, seal="\u00e9"),
        lambda entry: entry.pop("seal"),
        lambda entry: entry["key"].update(code="0" * 16),
        lambda entry: entry["key"].update(horizon=3),
    ):
        changed(how)
        calls = Calls()
        assert tune(Quadratic(), 2, folder=tmp_path, report=calls) == found and calls
        calls.clear()
        assert tune(Quadratic(), 2, folder=tmp_path, report=calls) == found and not calls
    (tmp_path / FILE).write_text(own)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    calls = Calls()
    assert tune(Quadratic(), 2, folder=tmp_path, report=calls) == found and calls
    assert len(entries(tmp_path)) == 1


def test_entries_that_are_none_are_left_out(tmp_path):
    (tmp_path / FILE).write_text('{"schema": 1, "entries": [3, null, [], {}, {"key": {"family": 3}}]}')
    found = tune(Quadratic(), 2, folder=tmp_path)
    assert [entry.get("settings") for entry in entries(tmp_path)] == [None, None, found]


def test_fingerprints_tell_families_apart():
    families = [
        Quadratic(1.0),
        Quadratic(2.0),
        Functions("booth"),
        Functions("rosenbrock"),
        Regression(4),
        Regression(4, activation="asinh"),
        Regression(4, group="first_order"),
        Regression(4, displacement=False),
        Regression(4, action="pseudo_inverse"),
        Regression(4, batch=2),
    ]
    prints = [fingerprint(family) for family in families]
    assert len(set(prints)) == len(families) == 10
    assert prints == [fingerprint(family) for family in families]
