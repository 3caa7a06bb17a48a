import json
import math

import pytest
import torch
from evaluation_cases import Quadratic, Turning

from meta_teleport.errors import UserError
from meta_teleport.evaluation.evaluation import comparison_steps, evaluate
from meta_teleport.evaluation.methods import BASELINES, TELEPORT_BASELINES
from meta_teleport.rules.classical import Adam, GradientDescent
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.regression import Regression

METHOD_KEYS = {"kind", "settings", "median", "mean", "q10", "q90", "seconds", "drift_max", "output_drift_max", "failed"}
COMPARISON_KEYS = {"a", "b", "step", "log10_ratio", "ci95", "win_rate"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def turning(folder):
    return evaluate(Turning(1e-3), Functions("rosenbrock"), horizon=3, tasks=12, folder=folder)


def test_the_json_has_every_key_of_the_schema_and_only_finite_numbers(turning):
    content = json.loads(json.dumps(turning.to_json(), allow_nan=False))
    assert content["schema"] == 2 and content["family"] == "functions"
    assert (content["seed"], content["dtype"], content["device"]) == (0, "float32", "cpu")
    assert content["tasks"] == 12 and content["steps"] == 30
    expected = {"turning", "turning/identity", "turning/random", *BASELINES, *TELEPORT_BASELINES}
    assert set(content["methods"]) == expected
    for method in content["methods"].values():
        assert set(method) >= METHOD_KEYS
        assert method["kind"] in ("learned", "control", "teleport-baseline", "baseline")
        for name in ("median", "mean", "q10", "q90", "seconds"):
            assert len(method[name]) == 31 and all(math.isfinite(value) for value in method[name])
        assert all(low <= high for low, high in zip(method["q10"], method["q90"], strict=True))
    assert content["methods"]["lbfgs"]["settings"] == {"reported": "lowest loss so far"}
    assert content["methods"]["adam"]["speedup_over_adam"] <= 1
    assert content["methods"]["turning"]["drift_max"] > 0 == content["methods"]["adam"]["drift_max"]


def test_the_rule_is_compared_with_every_other_method_at_one_three_and_ten_horizons(turning):
    comparisons = turning.to_json()["comparisons"]
    assert len(comparisons) == 3 * (len(turning.methods) - 1)
    for comparison in comparisons:
        assert set(comparison) == COMPARISON_KEYS
        assert comparison["a"] == "turning" and comparison["step"] in (3, 9, 30)
        assert comparison["ci95"][0] <= comparison["log10_ratio"] <= comparison["ci95"][1]
        assert 0 <= comparison["win_rate"] <= 1
    assert comparison_steps(10, 40) == [10, 30, 40] and comparison_steps(10, 5) == [5]


def test_all_methods_start_from_the_same_held_out_tasks(turning):
    first = {name: measured.losses[0] for name, measured in turning.measurements.items()}
    assert len(first) == 14
    for losses in first.values():
        torch.testing.assert_close(losses, first["turning"])
    family = Functions("rosenbrock")
    held_out = family.sample(12, torch.Generator().manual_seed(0), "held_out")
    torch.testing.assert_close(held_out.loss(held_out.params, torch.zeros(12)).double(), first["turning"])


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(turning, folder):
    again = evaluate(Turning(1e-3), Functions("rosenbrock"), horizon=3, tasks=12, folder=folder)
    other = evaluate(Turning(1e-3), Functions("rosenbrock"), horizon=3, tasks=12, folder=folder, seed=1)
    for name in turning.methods:
        assert torch.equal(again.measurements[name].losses, turning.measurements[name].losses)
    assert again.comparisons == turning.comparisons
    assert not torch.allclose(other.measurements["gd"].losses, turning.measurements["gd"].losses)


def test_a_rule_without_elements_has_no_controls_of_elements():
    calls = []
    result = evaluate(
        GradientDescent(0.1), Quadratic(), horizon=2, tasks=4, steps=6, label="mine",
        report=lambda *arguments: calls.append(arguments),
    )  # fmt: skip
    assert list(result.methods) == ["mine", *BASELINES]
    assert result.family == "quadratic" and {c.step for c in result.comparisons} == {2, 6}
    assert ("mine", 6, 6) in calls and calls[0] == ("tuning", 1, 4)


def test_without_a_rule_baselines_and_closed_forms_remain_and_nothing_is_compared(monkeypatch):
    monkeypatch.setattr("meta_teleport.evaluation.tuning.TASKS", 4)
    result = evaluate(None, Regression(3), horizon=2, tasks=4, steps=4)
    assert list(result.methods) == ["whitening", "last-layer-solve", *TELEPORT_BASELINES, *BASELINES]
    assert result.comparisons == () and result.steps == 4
    json.dumps(result.to_json(), allow_nan=False)


def test_failing_tasks_are_counted_and_keep_the_json_finite():
    result = evaluate(GradientDescent(1e4), Quadratic(), horizon=2, tasks=4, steps=6, label="wild")
    content = result.to_json()["methods"]["wild"]
    assert content["failed"] == 4
    assert content["median"][-1] == pytest.approx(1e6 * content["median"][0])
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, "horizon 0, tasks 8 and steps None must all be at least 1"),
        ({"horizon": 2, "steps": 0}, "steps 0 must all be at least 1"),
        ({"horizon": 2, "label": "adam"}, "label 'adam' is the name of another method"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        evaluate(Turning(), Functions("booth"), tasks=8, **arguments)
    assert "\n" not in str(raised.value)


def test_a_classical_rule_under_its_own_name_does_not_hide_the_baseline():
    result = evaluate(Adam(0.1), Quadratic(), horizon=2, tasks=2, steps=2)
    assert list(result.methods) == ["adam-rule", *BASELINES]
