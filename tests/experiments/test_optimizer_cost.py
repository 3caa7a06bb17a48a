"""The experiment on the cost of learned optimizers, on toy sizes. Nothing here measures time."""

from dataclasses import replace

import pytest

from experiments.cost.optimizer import NAMES, SHIPPED, SMOKE, ProcessorClock, measure, rule, rules
from experiments.cost.optimizer_report import markdown
from experiments.cost.subjects import Subject


def test_every_rule_is_measured_and_shown() -> None:
    plan = replace(SMOKE, widths={"ReLU": (4,), "adapters": (12,)})
    clock = ProcessorClock(plan.bursts, plan.seconds)
    rows = [row for kind, (width,) in plan.widths.items() for row in measure(kind, width, plan, clock)]
    expected = {"fused Adam", *NAMES, "adam, no teleports", "muon", "the pretrained rule"}
    assert {row["rule"] for row in rows if row["network"] == "ReLU"} == expected
    assert {(row["network"], row["sites"]) for row in rows} == {("ReLU", 2), ("adapters", 4)}
    assert all(row["ratio"] > 0 and row.get("undone", 0) == 0 for row in rows)
    shown = markdown(rows)
    assert shown.count("fused Adam") == 2 and "**adapters**" in shown


def test_what_is_measured_moves_the_network_and_teleports() -> None:
    subject = Subject("linear", 3, 6)
    before = [p.detach().clone() for p in subject.trained]
    call, undone = subject.learned(rule("plain_adam"), step_alone=True)
    for _ in range(3):
        call()
    far = max(float((p.detach() - q).abs().max()) for p, q in zip(subject.trained, before, strict=True))
    assert far > 1e-3 and undone() == 0  # an update of 1e-5 alone could not
    loss = float(subject.loss().detach())
    still = Subject("linear", 3, 6, subject.symmetry)
    assert abs(loss - float(still.loss().detach())) < 1e-2


@pytest.mark.parametrize("name", ["adam", "muon", SHIPPED])
def test_rules_teleport_for_as_long_as_they_are_measured(name: str) -> None:
    """Past the horizon of the pretrained rule, 300, too; updates are too short to get as far."""
    subject = Subject("linear", 4, 6)
    call, _ = subject.learned(dict(rules(SMOKE.alone, SMOKE))[name], step_alone=True)
    for _ in range(310):
        call()
    before = [p.detach().clone() for p in subject.trained]
    for _ in range(5):
        call()
    assert max(float((p.detach() - q).abs().max()) for p, q in zip(subject.trained, before, strict=True)) > 1e-4
