import json
import math

import pytest
import torch
from evaluation_cases import Quadratic, Turning, generator
from scipy import stats

from meta_teleport.evaluation.evaluation import Evaluation, evaluate
from meta_teleport.evaluation.measurement import Measurement
from meta_teleport.evaluation.methods import Method
from meta_teleport.evaluation.statistics import log10, student
from meta_teleport.evaluation.verdict import verdicts
from meta_teleport.rules.classical import Adam, GradientDescent
from meta_teleport.rules.wrappers import Still
from meta_teleport.tasks.functions import Functions


def measurement(final: torch.Tensor) -> Measurement:
    losses = torch.stack([torch.ones_like(final), final])
    return Measurement(losses, torch.tensor([0.0, 1.0]), torch.ones(len(final), dtype=torch.bool), 0, 0, 0.0, 0.0)


def words(exponents: dict[str, torch.Tensor]) -> dict[str, tuple[str, str]]:
    """The verdicts of ``rule`` after one step against methods whose losses are ten to these powers."""
    kinds = {"rule": "learned", "rule/identity": "control"}
    methods = {name: Method(name, kinds.get(name, "baseline"), Still()) for name in exponents}
    measured = {name: measurement(10**exponent) for name, exponent in exponents.items()}
    return {found.against: (found.word, found.role) for found in verdicts("rule", methods, measured, [1])}


def test_the_words_follow_planted_differences() -> None:
    noise = torch.randn(4, 50, generator=generator(), dtype=torch.float64)
    found = words(
        {
            "rule": noise[0],
            "rule/identity": noise[0] + 0.1 * noise[1] + 0.5,
            "gd": noise[0] + 0.1 * noise[2] - 0.5,
            "adam": noise[0] + noise[3] - noise[3].mean(),
        }
    )
    assert found == {
        "rule/identity": ("ahead", "its twin without teleports"),
        "gd": ("behind", "best baseline"),
        "adam": ("level", "baseline"),
    }


def test_a_single_task_gives_no_interval_and_equal_losses_are_level() -> None:
    one = torch.zeros(1, dtype=torch.float64)
    assert words({"rule": one, "adam": one + 1}) == {"adam": ("unknown", "best baseline")}
    assert words({"rule": one.expand(5), "adam": one.expand(5)}) == {"adam": ("level", "best baseline")}


def test_the_interval_is_that_of_student() -> None:
    values = torch.randn(7, generator=generator(), dtype=torch.float64)
    expected = stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
    assert student(values) == pytest.approx(tuple(expected))
    assert student(values[:1]) is None


@pytest.fixture(scope="module")
def turning() -> Evaluation:
    return evaluate(Turning(1e-3), Functions("rosenbrock"), horizon=3, tasks=6, steps=12)


def test_the_verdict_is_given_at_the_horizons_and_at_the_last_step(turning: Evaluation) -> None:
    found = turning.to_json()["verdicts"]
    assert list(dict.fromkeys(row["step"] for row in found)) == [3, 9, 12]
    plain = [name for name, method in turning.methods.items() if "baseline" in method.kind]
    for step in (3, 9, 12):
        rows = {row["against"]: row for row in found if row["step"] == step}
        means = {name: float(log10(turning.measurements[name].losses[step]).mean()) for name in turning.methods}
        best = min(plain, key=lambda name: means[name])
        assert set(rows) == {"turning/identity", "turning/random", best, "adam"}
        assert [name for name, row in rows.items() if row["role"] == "best baseline"] == [best]
        for name, row in rows.items():
            assert math.log10(row["ratio"]) == pytest.approx(means["turning"] - means[name])
            assert row["ci95"][0] <= row["ratio"] <= row["ci95"][1]


def test_ratios_stay_numbers_whatever_the_losses_are() -> None:
    methods = {"rule": Method("rule", "learned", Still()), "adam": Method("adam", "baseline", Still())}
    exponents = {"rule": [200.0, 0.0], "adam": [-30.0, 0.0]}
    measured = {name: measurement(10 ** torch.tensor(e, dtype=torch.float64)) for name, e in exponents.items()}
    (found,) = verdicts("rule", methods, measured, [1])
    shown = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert shown["word"] == "level" and shown["ratio"] == pytest.approx(1e115)
    assert shown["ci95"][0] > 0 and math.isfinite(shown["ci95"][1])


def test_failing_tasks_are_behind() -> None:
    result = evaluate(GradientDescent(1e30), Quadratic(), horizon=2, tasks=16, steps=4, label="wild")
    assert {row.word for row in result.verdicts} == {"behind"}


def test_a_baseline_alone_has_no_verdict() -> None:
    assert evaluate(None, Quadratic(), horizon=2, tasks=2, steps=2).verdicts == ()
    named = evaluate(Adam(0.1), Quadratic(), horizon=2, tasks=2, steps=2).verdicts
    assert {row.step for row in named} == {2}
