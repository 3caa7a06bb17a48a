"""Every combination of updates and teleports is a rule: it is built, trained, saved and loaded."""

from pathlib import Path
from typing import Any

import laws
import pytest
import torch

import meta_teleport as mt
from meta_teleport.equivariant.updates import UPDATES
from meta_teleport.learned.serialization import build
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.params import Params
from meta_teleport.rules.rule import Rule

RULES = {"Layerwise": {"direction": "adam"}, "Coordinatewise": {}}
LEARNED = ("polyak", "adam", "muon", "curvature", "coordinatewise")
PLAIN = ("gd", "plain_adam", "decaying_adam")
OWN: dict[str, dict[str, Any]] = {"curvature": {"alternating": True, "start": -2.0}}
TELEPORTS: tuple[list[str] | None, ...] = (None, ["incoming", "outgoing", "axes"])
CASES: dict[str, dict[str, Any]] = {
    **{name: {"class_path": name, "init_args": own} for name, own in RULES.items()},
    **{f"{update} only": {"update": update, "bases": [], **OWN.get(update, {})} for update in LEARNED},
    **{
        f"{update} and {'every basis' if bases is None else 'axes'}": {
            "update": update,
            "bases": bases,
            **OWN.get(update, {}),
        }
        for update in UPDATES
        for bases in TELEPORTS
    },
}
FAMILIES = {
    "factors": mt.Factorization(rank=3, inputs=6, outputs=5, points=32, batch=4),
    "scaling": mt.Regression(width=4, action="scaling", points=9, bias=True, data="gaussian"),
}
TRAINING = mt.TrainingConfig(meta_steps=2, tasks=4, window=3, horizon=6)


def spec_of(case: str) -> dict[str, Any]:
    settings = CASES[case]
    if "class_path" in settings:
        return {**settings, "init_args": {"hidden_size": 4, **settings["init_args"]}}
    return {"class_path": "Equivariant", "init_args": {"hidden_size": 4, "horizon": 6, "size": 0.5, **settings}}


def losses(rule: Rule, family: mt.TaskFamily) -> torch.Tensor:
    tasks = family.sample(4, torch.Generator().manual_seed(3))
    phi: Params = dict(rule.named_parameters())
    with torch.no_grad():
        return unroll(rule, phi, tasks, start(rule, tasks), 4)[0]


def test_every_combination_is_among_the_cases() -> None:
    assert set(UPDATES) == {*LEARNED, *PLAIN} and not set(LEARNED) & set(PLAIN)
    assert len(CASES) == len(RULES) + len(LEARNED) + len(UPDATES) * len(TELEPORTS) == 23


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_is_built_trained_saved_and_loaded(case: str, name: str, tmp_path: Path) -> None:
    family, spec = FAMILIES[name], spec_of(case)
    rule = build(spec, None, seed=1)
    groups = rule.meta_groups()
    teleports, learns = CASES[case].get("bases", []) != [], case.split()[0] not in PLAIN
    assert bool(groups["element"]) == teleports and bool(groups["update"]) == learns
    before = {key: p.detach().clone() for key, p in rule.named_parameters()}
    summary = mt.train(rule, family, TRAINING)
    assert summary.meta_step == 2 and summary.failed == 0
    for group in groups.values():
        moved = [bool((dict(rule.named_parameters())[key] != before[key]).any()) for key in group]
        assert any(moved) == bool(group)
    mt.save(rule, tmp_path / "rule.safetensors", {"rule": spec})
    found = mt.load(tmp_path / "rule.safetensors")
    laws.same_bits(found.state_dict(), rule.state_dict())
    laws.same_bits(losses(found, family), losses(rule, family))
    laws.must_fail(laws.same_bits, losses(build(spec, None, seed=1), family), losses(rule, family))


@pytest.mark.parametrize("update", PLAIN)
def test_nothing_learned_is_nothing_to_train(update: str) -> None:
    rule = build(spec_of("adam only") | {"init_args": {"update": update, "bases": []}}, None)
    with pytest.raises(mt.UserError, match="Equivariant has no meta-parameters"):
        mt.train(rule, FAMILIES["factors"], TRAINING)
