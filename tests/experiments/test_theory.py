"""The known answers of experiments/theory/run.py, each as a law with a control that breaks it; float64."""

import json
import subprocess
import sys
from pathlib import Path

import laws
import pytest
import torch
from torch import Tensor
from torch.func import vmap

from experiments.theory import descent, factorization, newton, one_teleport, quadratics, stationarity
from experiments.theory.brackets import derivative, gradient_flow, lie_bracket
from experiments.theory.examples import EXAMPLES
from experiments.theory.landscapes import Landscape, ellipse, plane

SCRIPT = ("-m", "experiments.theory.run")
LANDSCAPES = {example.landscape.name: example for example in EXAMPLES}
FILLING = [name for name, example in LANDSCAPES.items() if example.fills]
ROUNDING = 1e-9


def starts(name: str, count: int, generator: torch.Generator) -> Tensor:
    example = LANDSCAPES[name]
    return example.landscape.turned(example.starts(count, generator), generator)


def derivatives(landscape: Landscape, x: Tensor) -> tuple[Tensor, Tensor]:
    """``[A, R] f`` and ``A R f`` without units, ``(tasks,)``."""
    flow, f, field = gradient_flow(landscape.loss), landscape.squared_slope, landscape.symmetry
    bracket = vmap(derivative(lie_bracket(flow, field), f))(x)
    drift = vmap(derivative(flow, derivative(field, f)))(x)
    scale = vmap(landscape.loss)(x) / vmap(f)(x).square()
    return bracket * scale, drift * scale


def test_the_table_of_examples() -> None:
    assert len(LANDSCAPES) == len(EXAMPLES) == 9
    assert len(FILLING) == 6


@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_group_leaves_the_loss_alone_and_its_field_is_the_velocity(name: str, generator: torch.Generator) -> None:
    landscape, x = LANDSCAPES[name].landscape, starts(name, 5, generator)
    moved = landscape.turned(x, generator)
    laws.assert_close(vmap(landscape.loss)(moved), vmap(landscape.loss)(x), 1e-11)
    angle = torch.full((5,), 1e-6, dtype=torch.float64)
    velocity = (vmap(landscape.act)(x, angle) - vmap(landscape.act)(x, -angle)) / 2e-6
    laws.assert_close(vmap(landscape.symmetry)(x), velocity, 1e-7)
    along = (vmap(landscape.gradient)(x) * velocity).sum(1).abs()
    assert float((along / vmap(landscape.gradient)(x).norm(dim=1) / velocity.norm(dim=1)).max()) < 1e-6


def test_the_steepest_point_of_a_quadratic_is_its_top_eigenvector(generator: torch.Generator) -> None:
    vectors, w = quadratics.random_quadratics(4, 3, generator)
    found = quadratics.teleport(w, vectors, 150)
    laws.assert_close(quadratics.loss(found, vectors), quadratics.loss(w, vectors), 1e-12)
    length = (2 * quadratics.loss(w, vectors)).sqrt().unsqueeze(1)
    top = length * vectors[..., 0] * torch.sign((found * vectors[..., 0]).sum(1, keepdim=True))
    laws.assert_close(found, top, 1e-4)
    laws.must_fail(laws.assert_close, w, top, 0.1)


def test_a_quadratic_stays_steepest_after_one_teleport(generator: torch.Generator) -> None:
    vectors, w = quadratics.random_quadratics(4, 3, generator)
    steepness = quadratics.steepness(vectors[..., 0], vectors)[0]
    laws.assert_close(steepness, torch.ones_like(steepness), 1e-12)
    laws.must_fail(laws.assert_close, quadratics.steepness(w, vectors)[0], torch.ones_like(steepness), 0.1)


def test_one_step_from_the_steepest_point_of_an_ellipse_reaches_the_minimum() -> None:
    landscape, size = ellipse(5.0), torch.full((6,), 1 / (2 * 25), dtype=torch.float64)
    points = descent.starts(landscape, 6, seed=3)
    loss = {name: vmap(landscape.loss)(x) for name, x in points.items()}
    for name in descent.TELEPORTS:
        laws.assert_close(loss[name], loss["none"], 1e-12)
    assert float((descent.descend(landscape, points["steepest"], size, 1)[1] / loss["none"]).max()) < 1e-25
    assert float((descent.descend(landscape, points["random"], size, 1)[1] / loss["none"]).min()) > 1e-4


def test_diverged_descent_stays_diverged() -> None:
    landscape = plane("rosenbrock")
    losses = descent.descend(landscape, torch.tensor([[2.0, 2.0]], dtype=torch.float64), torch.ones(1), 9)
    assert losses[-1].tolist() == [descent.DIVERGED]


def test_the_bound_of_theorem_3_1_holds_with_teleports_and_fails_without(generator: torch.Generator) -> None:
    for problem in (stationarity.quadratic(12, generator), stationarity.curved(12, generator)):
        largest, own = stationarity.descend(problem, 100)
        least = largest.mean(2).min(0).values
        assert float(least[0]) < problem.bound(100)
        assert float(least[1]) > 10 * float(least[0])
        assert bool((own <= largest * (1 + ROUNDING)).all())
    assert float(least[1]) > problem.bound(100)


def test_the_noise_of_theorem_3_1(generator: torch.Generator) -> None:
    """``E |grad L(w, xi)|^2 <= 2 beta (L(w) - L(w*) + sigma^2)``; a tenth of the smoothness is too little."""
    problem = stationarity.quadratic(16, generator)
    values = torch.logspace(0, -2, 10, dtype=torch.float64)
    noise = problem.noise(4000, generator)
    for w in problem.start:
        squared = problem.gradient(w.expand_as(noise), noise).square().sum(1).mean()
        bound = 2 * problem.smoothness * (float((values * w.square()).sum()) / 2 + problem.variance)
        assert 0.1 * bound < float(squared) < bound


@pytest.mark.parametrize("landscape", newton.landscapes(), ids=lambda landscape: landscape.name)
def test_at_the_steepest_point_the_gradient_step_is_newtons(landscape: Landscape, generator: torch.Generator) -> None:
    x = landscape.turned(landscape.starts(20, generator), generator)
    steepest, _ = landscape.steepest(x)
    one = torch.ones(20, dtype=torch.float64)
    assert float(newton.residual(landscape, steepest).max()) < ROUNDING
    laws.assert_close(newton.alignment(landscape, steepest), one, ROUNDING)
    laws.must_fail(laws.assert_close, newton.alignment(landscape, x), one, 1e-2)


@pytest.mark.parametrize("landscape", newton.landscapes(), ids=lambda landscape: landscape.name)
def test_the_symmetry_part_of_newtons_direction(landscape: Landscape, generator: torch.Generator) -> None:
    x = landscape.turned(landscape.starts(50, generator), generator)
    v, rate = newton.symmetry_part(landscape, x)
    gradients = vmap(landscape.gradient)(x)
    assert float(((v * gradients).sum(1) / v.norm(dim=1) / gradients.norm(dim=1)).abs().max()) < 1e-6
    assert float(((newton.rate_by_group(landscape, x) - rate).abs() / rate.abs()).median()) < 1e-6
    assert bool((rate > 0).all()) == (landscape.name in newton.CONVEX)


def test_descent_in_the_whitened_gauge_is_scaled_descent(generator: torch.Generator) -> None:
    for condition in (1.0, 1e4):
        target, params = factorization.problems(3, condition, generator)
        laws.assert_close(params["u"] @ params["v"], target, 0.5)
        differences = {n: factorization.difference(*pair, params, target) for n, pair in factorization.GAUGES.items()}
        assert differences["own gauges at once"] < 1e-10
        assert differences["gauges in turn"] < 1e-10
        assert differences["one gauge for both"] > 1e-4


def test_only_the_rate_of_plain_descent_depends_on_the_condition_number(generator: torch.Generator) -> None:
    rates = {}
    for condition in (2.0, 200.0):
        target, params = factorization.problems(3, condition, generator)
        for name in ("GD", "own gauges at once"):
            path = factorization.errors(factorization.METHODS[name], params, target, factorization.SCALED_STEP, 60)
            rates[name, condition] = float(factorization.rates(path).mean())
    assert rates["own gauges at once", 200.0] == pytest.approx(rates["own gauges at once", 2.0], rel=0.05)
    assert rates["own gauges at once", 2.0] == pytest.approx(torch.tensor(0.5).log10().item(), rel=0.05)
    assert abs(rates["GD", 200.0]) < abs(rates["GD", 2.0]) / 5


@pytest.mark.parametrize("name", FILLING)
def test_where_orbits_fill_the_level_sets_the_bracket_vanishes_at_steepest_points(
    name: str, generator: torch.Generator
) -> None:
    landscape, x = LANDSCAPES[name].landscape, starts(name, 8, generator)
    steepest, _ = landscape.steepest(x)
    assert float(derivatives(landscape, steepest)[0].abs().max()) < ROUNDING
    assert float(derivatives(landscape, x)[0].abs().max()) > 1e-2


@pytest.mark.parametrize("name", LANDSCAPES)
def test_for_affine_actions_the_drift_is_minus_the_bracket(name: str, generator: torch.Generator) -> None:
    bracket, drift = derivatives(LANDSCAPES[name].landscape, starts(name, 8, generator))
    if LANDSCAPES[name].affine:
        laws.assert_close(drift, -bracket, 1e-10)
    else:
        laws.must_fail(laws.assert_close, drift, -bracket, 1e-3)


@pytest.mark.parametrize(
    ("name", "bracket", "drift", "one"),
    [
        ("ellipse", False, False, True),
        ("quadratic, axis follows a flow", True, False, True),
        ("quartic, maxima cross", False, False, False),
        ("quadratic, tilted axis", True, True, False),
        ("rosenbrock", False, True, False),
    ],
)
def test_when_one_teleport_is_enough(name: str, bracket: bool, drift: bool, one: bool) -> None:
    row, ratio = one_teleport.measure(LANDSCAPES[name], steps=60, checks=3, starts=2)
    assert (row["bracket at the start"] > 1e-3) == bracket
    assert (row["drift at the start"] > 1e-3) == drift
    assert (row["gap, one teleport"] < 1e-6) == one
    assert (row["teleports needed"][2] == 1) == one
    assert row["gap, none"] > 1e-3
    assert float(ratio[0]) == pytest.approx(1, abs=1e-9)


def test_the_flow_is_that_of_a_quadratic(generator: torch.Generator) -> None:
    """From ``x`` the coordinates fall like powers of one another: ``x_i(t) = x_i(0) exp(-q_i t)``."""
    landscape = LANDSCAPES["quadratic, tilted axis"].landscape
    curvatures = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    x = landscape.starts(4, generator)
    moved = one_teleport.descend(landscape, x, 200, 0.01)
    times = -(moved / x).log() / curvatures
    laws.assert_close(times, times[:, :1].expand(-1, 3), 1e-3)
    laws.assert_close(vmap(landscape.loss)(moved), vmap(landscape.loss)(x) * torch.tensor(-2.0).exp(), 1e-3)


def test_the_script_writes_a_table_and_a_figure(tmp_path: Path) -> None:
    command = [sys.executable, *SCRIPT, "--smoke", "--only", "newton", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "theory.json").read_text())
    assert results["smoke"] is True
    assert results["provenance"]["versions"]["torch"] in torch.__version__
    assert len(results["newton"]["rows"]) == 4
    assert results["newton"]["title"] in done.stdout
    assert (tmp_path / "theory_newton.png").stat().st_size > 10_000


@pytest.mark.slow
def test_all_statements_run(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, *SCRIPT, "--smoke", "--out", str(tmp_path)], check=False)
    assert done.returncode == 0
    assert len(list(tmp_path.glob("theory_*.png"))) == 6
