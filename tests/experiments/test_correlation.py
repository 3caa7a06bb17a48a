"""Sharpness and curvature against the test loss: the statistics, the measures, the scripts from end to end."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import meta_teleport as mt
from experiments.correlation import run as correlation
from experiments.lab import correlations as statistics
from experiments.lab import measures
from experiments.lab.image_training import Plan
from experiments.lab.progress import Stopped
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.tasks.images import Images
from meta_teleport.teleportation.curvature import kappa

WIDTHS = (64, 8, 6, 10)


@pytest.fixture(scope="module")
def images() -> Images:
    return mt.load_images("digits").head(200, 60).flat


@pytest.fixture(scope="module")
def copies() -> Ensemble:
    return Ensemble(lambda: MLP(WIDTHS), range(5), [partial(torch.optim.SGD, lr=0.1)])


def drawn(seeds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x and y that depend on z, and not on each other otherwise."""
    source = np.random.default_rng(0)
    z = source.normal(size=seeds)
    return z + source.normal(size=seeds), z + source.normal(size=seeds), z


def test_pearson_and_its_interval_are_scipys() -> None:
    x, y, _ = drawn(40)
    found, expected = statistics.correlation(x, y), stats.pearsonr(x, y)
    assert found["r"] == pytest.approx(expected.statistic, abs=1e-12)
    assert found["ci95"] == pytest.approx(list(expected.confidence_interval(0.95)), abs=1e-12)


def test_bootstrap_interval_agrees_with_fishers_for_normal_data() -> None:
    x, y, _ = drawn(2000)
    found = statistics.correlation(x, y)
    assert found["bootstrap_ci95"] == pytest.approx(found["ci95"], abs=0.01)


def test_partial_correlation_is_that_of_the_residuals() -> None:
    x, y, z = drawn(500)
    left = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
    found = statistics.correlation(x, y, z)
    assert found["r"] == pytest.approx(stats.pearsonr(*left).statistic, abs=1e-10)
    low, high = found["ci95"]
    assert low < 0 < high
    assert statistics.correlation(x, y)["ci95"][0] > 0.3  # what the common cause alone brings about


def test_a_measure_that_is_the_loss_in_disguise_is_told_apart() -> None:
    source = torch.Generator().manual_seed(0)
    train = torch.rand(60, generator=source)
    test = train + 0.2 * torch.rand(60, generator=source)
    own = train.expand(8, 60) + 1e-3 * torch.randn(8, 60, generator=source)
    noise = torch.randn(8, 60, generator=source)
    batches = {"loss": own, "sharpness": own + 1e-3 * noise, "curvature": test.expand(8, 60) - train + 0.1 * noise}
    found = statistics.correlations(train, test, batches)["measures"]
    assert found["sharpness"]["test"]["ci95"][0] > 0.9
    assert found["sharpness, less the loss"]["test"]["ci95"][0] < 0.1
    assert found["sharpness"]["test_given_train"]["ci95"][0] < 0 < found["sharpness"]["test_given_train"]["ci95"][1]
    assert found["curvature"]["test_given_train"]["ci95"][0] > 0.5
    assert found["sharpness"]["reliability"] > 0.99 > found["sharpness, less the loss"]["reliability"]


def test_spearman_brown_of_parallel_halves() -> None:
    """Batches that see the measure t and errors of their own, all orthogonal over seeds: two runs of four batches each
    correlate as ``var t / (var t + var e / 4)``, which is to be told from one run alone."""
    seeds, share = 64, 0.7
    angles = 2 * torch.pi * torch.arange(seeds, dtype=torch.float64) / seeds
    t, *errors = (2**0.5 * (k * angles).cos() for k in range(1, 10))
    first, second = torch.stack(errors[:4]), torch.stack(errors[4:])
    runs = [(share * t + (1 - share) * e).mean(0) for e in (first, second)]
    repeated = float(np.corrcoef(*runs)[0, 1])
    assert repeated == pytest.approx(share**2 / (share**2 + (1 - share) ** 2 / 4), abs=1e-12)
    batches = {"loss": first, "curvature": share * t + (1 - share) * first}
    found = statistics.correlations(t + errors[5], t + errors[6], batches)["measures"]["curvature"]
    assert found["reliability"] == pytest.approx(repeated, abs=1e-12)


def test_seeds_that_diverged_are_left_out_and_counted() -> None:
    values = torch.rand(4, 9, generator=torch.Generator().manual_seed(0))
    train, test = values[0].clone(), values[1].clone()
    test[3] = torch.inf
    found = statistics.correlations(train, test, {"loss": values, "sharpness": 2 * values})
    assert found["left_out"] == 1
    assert len(found["test_loss"]) == len(found["measures"]["sharpness"]["values"]) == 8


def test_too_few_seeds_are_refused() -> None:
    with pytest.raises(mt.UserError, match="correlations over 4 seeds say nothing: give --seeds 5 or more"):
        statistics.correlations(torch.rand(4), torch.rand(4), {"loss": torch.rand(2, 4)})


def by_hand(copies: Ensemble, number: int, x: Tensor, y: Tensor, scales: list[float], nonnegative: bool) -> list[float]:
    """Sharpness of every copy by itself, with the directions of batch ``number``."""
    draw, found = (torch.rand if nonnegative else torch.randn), []
    for copy in range(copies.count):
        generator = torch.Generator().manual_seed(number)
        d = [draw(1, *p.shape[1:], generator=generator)[0] for p in copies.params.values()]
        length = torch.cat([part.flatten() for part in d]).norm()
        total = 0.0
        for t in scales:
            h, weights = x, [p.detach()[copy] for p in copies.params.values()]
            for i, (w, part) in enumerate(zip(weights, d, strict=True)):
                h = (torch.nn.functional.leaky_relu(h, 0.1) if i else h) @ (w + t * part / length).T
            total += float(torch.nn.functional.cross_entropy(h, y)) / len(scales)
        found.append(total)
    return found


@pytest.mark.parametrize("nonnegative", [True, False])
def test_sharpness_is_that_of_every_copy_alone(copies: Ensemble, images: Images, nonnegative: bool) -> None:
    x, y, scales = images.x_train[:30], images.y_train[:30], [0.1, 0.7]
    found = measures.sharpness(copies, scales, nonnegative)(3, x, y)
    assert found.tolist() == pytest.approx(by_hand(copies, 3, x, y, scales, nonnegative), rel=1e-5)
    assert found.tolist() != pytest.approx(by_hand(copies, 3, x, y, scales, not nonnegative), rel=1e-4)


def test_published_elements_are_positive_and_of_norm_one_at_every_site(copies: Ensemble) -> None:
    symmetry = mlp_symmetry(MLP(WIDTHS), "pseudo_inverse")
    like = copies.params["layers.0.weight"]
    drawn = measures.positive(symmetry, like, torch.Generator().manual_seed(0))
    assert [m.shape for m in drawn] == [(5, 8, 8), (5, 6, 6)]
    for m in drawn:
        assert bool((m >= 0).all())
        assert m[0].norm() == pytest.approx(1, rel=1e-6)
    spread = measures.gaussian(symmetry, like, torch.Generator().manual_seed(0))
    assert sum(float(m[0].square().sum()) for m in spread) == pytest.approx(1, rel=1e-6)
    assert any(bool((m < 0).any()) for m in spread)


@pytest.mark.parametrize("action", ["general_linear", "pseudo_inverse"])
def test_curvature_in_chunks_is_that_of_all_copies(
    copies: Ensemble, images: Images, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    symmetry, x = mlp_symmetry(MLP(WIDTHS), action), images.x_train[:30]
    monkeypatch.setattr(measures, "CHUNK", 2)
    found = measures.curvature(copies, symmetry, measures.positive)(4, x, images.y_train[:30])
    params = {name: p.detach() for name, p in copies.params.items()}
    algebra = measures.positive(symmetry, params["layers.0.weight"], torch.Generator().manual_seed(4))
    torch.testing.assert_close(found, kappa(symmetry, algebra, x, params), rtol=1e-3, atol=1e-4)
    assert float(found.min()) > 0


def test_published_curvature_leaves_out_where_two_pairs_meet(images: Images) -> None:
    """With one pair of layers there is nothing to leave out, with two there is."""
    x, y = images.x_train[:30], images.y_train[:30]
    apart = []
    for widths in ((64, 8, 10), WIDTHS):
        own = Ensemble(lambda widths=widths: MLP(widths).double(), range(3), [partial(torch.optim.SGD, lr=0.1)])
        symmetry = mlp_symmetry(MLP(widths), "general_linear")
        published = measures.published_curvature(own, symmetry)(7, x.double(), y)
        whole = measures.curvature(own, symmetry, measures.positive)(7, x.double(), y)
        apart.append(float(((published - whole) / whole).abs().max()))
    assert apart[0] < 1e-6
    assert apart[1] > 1e-2


def test_fresh_directions_are_one_for_every_distance(copies: Ensemble, images: Images) -> None:
    x, y = images.x_train[:30], images.y_train[:30]
    found = measures.sharpness(copies, [0.5, 0.9], nonnegative=True, fresh=True)(3, x, y)
    first, second = (torch.tensor(by_hand(copies, 6 + i, x, y, [t], True)) for i, t in enumerate((0.5, 0.9)))
    torch.testing.assert_close(found, (first + second) / 2, rtol=1e-5, atol=0)


def test_seeds_trained_in_groups_are_those_trained_together(images: Images, tmp_path: Path) -> None:
    plan, build, seeds = Plan(2, 20, "sequential"), (lambda: MLP(WIDTHS)), range(5)
    together, curves = correlation.trained(images, plan, build, seeds, 0.1, 5, tmp_path / "together", "")
    apart, parts = correlation.trained(images, plan, build, seeds, 0.1, 2, tmp_path / "apart", "")
    assert len(list((tmp_path / "apart").iterdir())) == 3
    for name, p in together.params.items():
        torch.testing.assert_close(apart.params[name], p, rtol=1e-4, atol=1e-5)
    for one, other in zip(curves[:3], parts[:3], strict=True):
        assert one.shape == (3, 5)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert parts.seconds.shape == (3,)


def test_measuring_goes_on_where_it_was_stopped(
    copies: Ensemble, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str, measure: measures.Measure) -> measures.Measure:
        def call(number: int, x: Tensor, y: Tensor) -> Tensor:
            calls.append(name)
            return measure(number, x, y)

        return call

    wanted = {
        "loss": (counted("loss", measures.loss(copies)), 100),
        "sharpness": (counted("sharpness", measures.sharpness(copies, [0.1], False)), 2),
    }
    whole, _ = measures.measured(wanted, images, 50, tmp_path / "whole.safetensors", "")
    assert whole["loss"].shape == (4, 5)  # all batches that there are
    assert calls == ["loss"] * 4 + ["sharpness"] * 2

    calls.clear()
    kept = tmp_path / "parts.safetensors"
    asked = pytest.MonkeyPatch()
    asked.setattr(measures, "stopping", Asked)
    with pytest.raises(Stopped, match="label: stopped after loss; the same command goes on from there"):
        measures.measured(wanted, images, 50, kept, "label")
    asked.undo()
    assert calls == ["loss"] * 4
    resumed, seconds = measures.measured(wanted, images, 50, kept, "")
    assert seconds > 0
    assert calls == ["loss"] * 4 + ["sharpness"] * 2
    for name in whole:
        assert torch.equal(whole[name], resumed[name])

    with pytest.raises(mt.UserError, match="belongs to a run with other size: delete it, or choose another --out"):
        measures.measured(wanted, images, 40, kept, "")


class Asked:
    """A run that has been asked to stop."""

    def __enter__(self) -> Any:
        return lambda: True

    def __exit__(self, *_: object) -> None:
        pass


def test_batches_larger_than_the_data_are_refused(copies: Ensemble, images: Images, tmp_path: Path) -> None:
    with pytest.raises(mt.UserError, match="digits: 200 training images do not fill a batch of 201"):
        measures.measured({"loss": (measures.loss(copies), 1)}, images, 201, tmp_path / "kept", "")


def run(name: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", "-m", name, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_correlation_from_end_to_end(tmp_path: Path) -> None:
    flags = ("--smoke", "--own-order", "digits", "--out", str(tmp_path))
    first = run("experiments.correlation.run", *flags)
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("seed-steps per second") == 2
    results = json.loads((tmp_path / "correlation.json").read_text())
    assert results["smoke"] is True
    assert results["provenance"]["versions"]["torch"] in torch.__version__
    assert [(found["data"], found["order"]) for found in results["runs"]] == [
        ("digits", "sequential"),
        ("digits", "own"),
    ]
    for found in results["runs"]:
        assert found["seeds"] == len(found["test_loss"]) == 12
        assert found["mean_curves"]["train"][-1] < found["mean_curves"]["train"][0]
        measured = found["measures"]
        assert len(measured) == 12
        near, own = np.array(measured["sharpness, published"]["values"]), np.array(found["training_loss"])
        assert abs(near - own).max() < 0.1  # at distances so small, sharpness is the loss
        for row in measured.values():
            r, (low, high) = row["test"]["r"], row["test"]["ci95"]
            assert -1 < low < r < high < 1
    assert results["runs"][0]["seed_steps_per_second"] > 0
    assert results["runs"][0]["test_loss"] != results["runs"][1]["test_loss"]
    assert first.stdout == (tmp_path / "correlation.md").read_text() + "\n"
    assert first.stdout.count("| digits, own order | curvature, published |") == 2
    for kind in ("sharpness", "curvature"):
        for suffix in ("png", "pdf"):
            assert (tmp_path / f"correlation_{kind}.{suffix}").stat().st_size > 10_000

    again = run("experiments.correlation.run", *flags, "--own-order-only")
    assert again.returncode == 0, again.stderr
    (own_order,) = json.loads((tmp_path / "correlation.json").read_text())["runs"]
    assert own_order["measures"] == results["runs"][1]["measures"]


def test_correlation_says_what_a_user_got_wrong(tmp_path: Path) -> None:
    few = run("experiments.correlation.run", "--smoke", "--seeds", "3", "--out", str(tmp_path))
    assert few.returncode == 2
    assert few.stderr.splitlines()[-1] == "error: correlations over 3 seeds say nothing: give --seeds 5 or more"
    assert not (tmp_path / "correlation.json").exists()
    absent = run("experiments.correlation.run", "--data", "absent.npz", "--out", str(tmp_path))
    assert absent.returncode == 2
    assert absent.stderr == "error: there is no file absent.npz: check the path\n"


def test_training_rates_from_end_to_end(tmp_path: Path) -> None:
    done = run("experiments.cost.training_rates", "--smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "training_rates.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == [1, 1, 1, 10, 1, 10]
    assert all(row["ci95"][0] <= row["times_plain"] <= row["ci95"][1] for row in rows)
    for row in rows:
        ratio = row["seed_steps_per_second"] / row["plain_per_second"]
        assert 0.1 < ratio / row["times_plain"] < 10  # medians, and a mean of paired bursts
    assert done.stdout.count("\n| ") == len(rows)
    assert (tmp_path / "training_rates.png").stat().st_size > 5_000
