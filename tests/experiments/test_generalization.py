"""experiments/generalization/run.py from end to end, and what its parts promise."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import laws
import pytest
import torch
from cases import Case, build

from experiments.generalization import branches as generalization_branches
from experiments.generalization.branches import branches
from experiments.generalization.frequency import EVERY, due, frequencies
from experiments.generalization.probes import MEASURES, ORTHANT, SPHERE, probe
from experiments.generalization.report import shown, signed
from experiments.generalization.runs import Epochs, base_runs, copies_of, place, setting_of, teleport_batch
from experiments.generalization.statistics import band, late, strict
from experiments.generalization.teleports import LIMITED, PUBLISHED, SCALING, Teleports, Variant
from experiments.lab import image_training
from experiments.lab.image_teleports import SIGNS, curvature_steps
from experiments.lab.intervals import paired
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble, Jump
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.tasks.images import Images, load_images
from meta_teleport.teleportation.ascent import Direction
from meta_teleport.teleportation.curvature import kappa
from meta_teleport.teleportation.objectives import SEARCH_SCALES, Curvature, Sharpness

SCRIPT = ("-m", "experiments.generalization.run")
EPOCHS = Epochs(1, 2, 4)
RANDOM = replace(SCALING[0], random=True)


@pytest.fixture
def images() -> Images:
    return load_images("digits").flat.head(200, 60)


@pytest.fixture
def base(images: Images, tmp_path: Path) -> dict[int, Ensemble]:
    return base_runs(images, range(2), EPOCHS, tmp_path / "base")


@pytest.fixture
def trained(images: Images, tmp_path: Path) -> Ensemble:
    return base_runs(images, range(2), Epochs(1, 12, 12), tmp_path / "trained")[12]


def run(folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, *SCRIPT, "--smoke", "--out", str(folder), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads((folder / "generalization.json").read_text())
    assert (folder / "generalization.md").read_text() + "\n" == result.stdout
    return found


def test_the_script_from_end_to_end_and_once_more(tmp_path: Path) -> None:
    found = run(tmp_path)
    (digits,) = found["results"]
    rows = {row["variant"]: row for row in digits["branches"]["rows"]}
    assert found["smoke"] and len(rows) == 5 and digits["branches"]["seeds"] == 3
    starts = {tuple(row["test"][0]) for row in rows.values()}
    assert len(starts) == 1, "all variants go on from the same weights"
    plain = rows["none"]
    assert plain["teleports"] is None
    for name, row in rows.items():
        assert len(row["test"]) == len(row["train"]) == 2 and isinstance(row["train"][0], float)
        assert set(row["probes"]) == {"before", "after", "end"}
        if name.startswith("scaling"):
            assert row["teleports"]["drift_max"] < 1e-5, name
            assert row["test"][-1] != plain["test"][-1], name
    assert rows["published, sharpness raise"]["teleports"]["drift_max"] > 1e-5
    twin = rows["scaling, sharpness lower"]["teleports"]
    assert rows["scaling, sharpness lower, random"]["teleports"]["size"] == pytest.approx(twin["size"])
    told = {(row["variant"], row["frequency"]): row["teleports"] for row in digits["frequency"]["rows"]}
    assert len(told) == 1 + 2 * len(EVERY)
    assert told["scaling, curvature raise", "every epoch"]["count"] == 2
    assert told["scaling, curvature raise", "once"]["count"] == 1
    for name in ("generalization_digits", "generalization_digits_frequency"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert (tmp_path / f"{name}.pdf").exists()
    assert run(tmp_path)["results"] == found["results"]


def test_some_variants_alone(tmp_path: Path) -> None:
    (digits,) = run(tmp_path / "one", "--variants", "limited, curvature raise", "scaling, curvature raise")["results"]
    assert [row["variant"] for row in digits["branches"]["rows"]] == ["none", "limited, curvature raise"]
    assert {row["variant"] for row in digits["frequency"]["rows"]} == {"none", "scaling, curvature raise"}
    (digits,) = run(tmp_path / "none_often", "--variants", "limited, curvature raise")["results"]
    assert "frequency" not in digits
    command = [sys.executable, *SCRIPT, "--smoke", "--variants", "scaling, sharpness lower, random"]
    alone = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert alone.returncode == 2 and "goes as far as the one it controls" in alone.stderr


def test_late_is_the_mean_of_the_second_half_of_the_epochs() -> None:
    row = {"test": [[9.0, 9.0], [8.0, 8.0], [7.0, 7.0], [1.0, 2.0], [3.0, 5.0]]}
    assert late(row) == [2.0, 3.5]
    assert late({"test": row["test"][:2]}) == [8.0, 8.0]


def test_how_often_teleports_are_due() -> None:
    counts = {name: sum(due(every, epoch) for epoch in range(30)) for name, every in EVERY.items()}
    assert counts == {"once": 1, "every 10": 3, "every 5": 6, "every 2": 15, "every epoch": 30}


def test_every_setting_starts_where_its_base_run_is(images: Images, base: dict[int, Ensemble]) -> None:
    copies = copies_of(images, [0], 3)
    before = copies.params["layers.0.weight"].detach().clone()
    place(base[2], copies)
    for name, p in copies.params.items():
        for row in p:
            assert torch.equal(row, base[2].params[name][0])
    assert not torch.equal(copies.params["layers.0.weight"], before)


def test_base_runs_in_two_parts_are_one_run(images: Images, base: dict[int, Ensemble], tmp_path: Path) -> None:
    whole = base_runs(images, range(2), replace(EPOCHS, early=0), tmp_path / "whole")[2]
    for name, p in base[2].params.items():
        assert torch.equal(p, whole.params[name])
    assert not torch.equal(base[1].params["layers.0.weight"], base[2].params["layers.0.weight"])


def jump(images: Images, base: Ensemble, variant: Variant, number: int = 0) -> tuple[Ensemble, Jump]:
    copies = copies_of(images, base.seeds, 1)
    place(base, copies)
    teleports = Teleports(copies.model, setting_of(images).sizes, directions=2)
    return copies, teleports.move(copies, 0, variant, number, teleport_batch(images, number))


@pytest.mark.parametrize("variant", [*PUBLISHED, *LIMITED, *SCALING], ids=lambda v: v.name)
def test_scalings_keep_every_loss_and_published_teleports_do_not(
    images: Images, trained: Ensemble, variant: Variant
) -> None:
    copies, moved = jump(images, trained, variant)
    assert bool((moved.size > 0).any())
    assert (moved.size > 0).equal(torch.stack([p != q for p, q in _first(copies, trained)]).any(0).any(1))
    x, y = images.x_test, images.y_test
    change = (copies.evaluate(x, y)[0] - trained.evaluate(x, y)[0]).abs()
    assert bool((change < 1e-5).all()) == (variant.action == "scaling"), change


def _first(copies: Ensemble, base: Ensemble) -> list[tuple[torch.Tensor, torch.Tensor]]:
    name = "layers.1.weight"
    return [(copies.params[name].flatten(1), base.params[name].flatten(1))]


@pytest.mark.parametrize(("points", "composes"), [(30, False), (5, True)], ids=["wide", "narrow"])
@pytest.mark.parametrize("direction", list(SIGNS))
def test_the_published_curvature_step_differentiates_along_one_curve(
    points: int, composes: bool, direction: Direction
) -> None:
    """Against Richardson's extrapolation of central differences; a curve restarted at ``exp(t M) . w`` has another
    slope where more points than units keep action (b) from composing."""
    instance = build(
        Case("pseudo_inverse", "leaky_relu", False, (8, 6, 5, 4), points, displacement=False, condition=1e3)
    )
    start, inputs = instance.params, instance.inputs[:1].squeeze(0)
    site = instance.symmetry.only("layers.1")
    m = torch.rand(5, 5, generator=torch.Generator().manual_seed(3)).double().expand(3, 5, 5)

    def slope(curve: Callable[[float], torch.Tensor]) -> torch.Tensor:
        coarse, fine = ((curve(h) - curve(-h)) / (2 * h) for h in (2e-4, 1e-4))
        return (4 * fine - coarse) / 3

    along = slope(lambda t: kappa(site, [m], inputs, start, torch.full((3,), t, dtype=torch.float64)))
    restarted = slope(lambda t: kappa(site, [m], inputs, site.flow(start, [t * m], inputs)))
    found = curvature_steps(["layers.1"], 1e-3, direction, 3)(instance.symmetry, start, lambda p: p[""], inputs)
    expected, wrong = (
        site.flow(start, [SIGNS[direction] * 1e-3 * s[:, None, None] * m], inputs) for s in (along, restarted)
    )
    laws.params_close(found.params, expected, 1e-8)
    laws.assert_close(found.size, (1e-3 * along).abs() * m.norm(dim=(1, 2)), 1e-6)
    if composes:
        laws.assert_close(restarted, along, 1e-6)
    else:
        laws.must_fail(laws.params_close, found.params, wrong, 1e-5)


def test_limited_steps_are_short_and_published_ones_need_not_be(images: Images, trained: Ensemble) -> None:
    for variant in LIMITED:
        assert float(jump(images, trained, variant)[1].size.max()) <= 0.1 + 1e-6
    assert float(jump(images, trained, PUBLISHED[3])[1].size.max()) > 0.2


def test_a_random_teleport_goes_as_far_as_the_one_it_controls(images: Images, trained: Ensemble) -> None:
    copies = copies_of(images, trained.seeds, 2)
    place(trained, copies)
    teleports = Teleports(copies.model, setting_of(images).sizes, directions=1)
    batch = teleport_batch(images, 0)
    twin = teleports.move(copies, 0, SCALING[0], 0, batch)
    control = teleports.move(copies, 1, RANDOM, 0, batch)
    assert torch.equal(control.size, twin.size)
    half = len(trained.seeds)
    first = copies.params["layers.0.weight"]
    assert not torch.allclose(first[:half], first[half:])
    with pytest.raises(KeyError):
        teleports.move(copies, 1, RANDOM, 1, batch)


@pytest.mark.parametrize("pair", [SCALING[:2], SCALING[2:]], ids=["sharpness", "curvature"])
def test_lowering_and_raising_go_apart(images: Images, trained: Ensemble, pair: tuple[Variant, Variant]) -> None:
    x, y = teleport_batch(images, 0)

    def objective(copies: Ensemble) -> torch.Tensor:
        params = {name: p.detach() for name, p in copies.params.items()}
        if pair[0].quantity == "curvature":
            return Curvature(mlp_symmetry(MLP((64, 16, 10, 10)), "scaling"), x, directions=4)(copies.evaluate, params)
        return Sharpness(directions=4)(lambda moved: copies.losses(x[None], y[None], moved), params)

    lower, upper = (objective(jump(images, trained, variant)[0]) for variant in pair)
    between = objective(trained)
    assert bool((lower < between).all()) and bool((between < upper).all())


def test_a_probe_is_what_it_says(images: Images, trained: Ensemble) -> None:
    found = probe(trained, images, size=100, directions=2)
    assert list(found) == list(MEASURES)
    copies = trained
    x, y = images.x_train[-200:], images.y_train[-200:]
    losses = [copies.losses(x[at][None], y[at][None]).detach() for at in (slice(100, 200), slice(0, 100))]
    laws.assert_close(found["training loss"], (losses[0] + losses[1]) / 2, 1e-5)
    for name, draw in ((SPHERE, torch.randn), (ORTHANT, torch.rand)):
        total = torch.zeros(copies.count)
        for number, at in enumerate((slice(100, 200), slice(0, 100))):
            generator = torch.Generator().manual_seed(10_000 + number)
            drawn = {key: draw(1, *p.shape[1:], generator=generator) for key, p in copies.params.items()}
            norm = torch.cat([d.flatten() for d in drawn.values()]).norm()
            for scale in SEARCH_SCALES:
                moved = {key: p.detach() + scale * drawn[key] / norm for key, p in copies.params.items()}
                total += copies.losses(x[at][None], y[at][None], moved) / 18
        laws.assert_close(found[name], total - found["training loss"], 1e-4)


def test_a_stopped_part_goes_on_as_if_it_had_not_been(
    images: Images, base: dict[int, Ensemble], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_training, "SAVE_EVERY_S", 0.0)
    whole = frequencies(images, base[1], SCALING[2:3], EPOCHS, 2, 1, tmp_path / "whole")
    move, calls = Teleports.move, []

    def break_at_the_third_epoch(*arguments: Any) -> Jump:
        calls.append(arguments)
        if arguments[4] == 2:
            raise KeyboardInterrupt
        return move(*arguments)

    monkeypatch.setattr(Teleports, "move", break_at_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        frequencies(images, base[1], SCALING[2:3], EPOCHS, 2, 1, tmp_path / "stopped")
    monkeypatch.setattr(Teleports, "move", move)
    assert (tmp_path / "stopped" / "frequency.safetensors").exists() and calls
    assert frequencies(images, base[1], SCALING[2:3], EPOCHS, 2, 1, tmp_path / "stopped") == whole


def test_branches_that_stop_before_the_last_probe_go_on(
    images: Images, base: dict[int, Ensemble], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, probes = (SCALING[2], LIMITED[0]), []

    def stop_at_the_third(*arguments: Any) -> dict[str, torch.Tensor]:
        probes.append(arguments)
        if len(probes) == 3:
            raise KeyboardInterrupt
        return probe(*arguments)

    whole = branches(images, base[2], chosen, EPOCHS, (1, 1), tmp_path / "whole")
    monkeypatch.setattr(generalization_branches, "probe", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        branches(images, base[2], chosen, EPOCHS, (1, 1), tmp_path / "stopped")
    found = branches(images, base[2], chosen, EPOCHS, (1, 1), tmp_path / "stopped")
    assert {**found, "seconds": 0} == {**whole, "seconds": 0}
    assert len(probes) == 4, "what was measured before the stop is not measured again"


def test_paired_differences() -> None:
    found = paired([1.0, 2.0, math.nan, 4.0], [0.5, 1.0, 1.0, 2.0])
    assert found["mean"] == pytest.approx(3.5 / 3) and found["seeds"] == 3
    assert found["low"] == pytest.approx(0.5) and found["high"] == pytest.approx(2.0)
    few = paired([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], few=True)
    assert few["low"] == pytest.approx(2 - 4.302653 / 3**0.5) and few["high"] == pytest.approx(2 + 4.302653 / 3**0.5)
    assert paired([math.nan, 1.0], [0.0, 0.0]) == {"mean": None, "low": None, "high": None, "seeds": 1}


def test_bands_leave_out_what_diverged() -> None:
    values = torch.tensor([[1.0, 3.0, 5.0], [2.0, 4.0, math.inf]])
    mean, low, high = band(values)
    assert mean == [2.0, 3.0] and low == [1.0, 2.0] and high == [3.0, 4.0]
    assert all(math.isnan(x) for x in band(values[:, 2:])[0])


def test_cells_of_tables() -> None:
    found = paired([1.0, 1.0], [0.0, 0.0])
    assert shown(found, plain=True) == "1.0000"
    assert shown(found, plain=False) == "+1.0000 [+1.0000, +1.0000]"
    assert shown(found, plain=False, seeds=3) == "+1.0000 [+1.0000, +1.0000] (2)"
    assert shown(paired([math.nan], [0.0]), plain=False) == "0 finite"
    assert signed(1234.5) == "+1.23e+03"


def test_results_hold_no_numbers_that_json_has_not() -> None:
    content = {"a": [1.0, math.nan, (math.inf, 2)], "b": {"c": -math.inf, "d": "nan"}, "e": 0.123456789}
    assert strict(content) == {"a": [1.0, None, [None, 2]], "b": {"c": None, "d": "nan"}, "e": 0.123457}
