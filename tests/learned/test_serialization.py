import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

import meta_teleport as mt
from meta_teleport.errors import UserError
from meta_teleport.learned.serialization import (
    NAMED,
    build,
    describe,
    load,
    require_fit,
    save,
    shapes_from_json,
    shapes_to_json,
)
from meta_teleport.rules.classical import GradientDescent
from meta_teleport.rules.rule import Rule, shapes_of
from meta_teleport.runs.checkpoint import load_tensors, save_tensors
from meta_teleport.runs.run import Run
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.regression import Regression

NAMES = ("LSTMUpdate", "LSTMUpdateTele", "LSTMLrTele")


def shapes(family=None):
    tasks = (family or Regression(width=3, bias=True)).sample(1, torch.Generator().manual_seed(0))
    return shapes_of(tasks.params, tasks.symmetry)


def config(name="LSTMUpdateTele"):
    spec = {"class_path": name, "init_args": {"hidden_size": 4}}
    return {"format": 1, "task": {}, "rule": spec, "training": {}, "seed": 0, "dtype": "float32"}


def saved(path, name="LSTMUpdateTele", dtype=torch.float32):
    rule = build(config(name)["rule"], shapes(), seed=5).to(dtype)
    save(rule, path, config(name), 7)
    return rule


def refused(path, text):
    with pytest.raises(UserError) as caught:
        load(path)
    assert text in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_bitwise(tmp_path, name, dtype):
    rule = saved(tmp_path / "rule.safetensors", name, dtype)
    for path in (tmp_path, tmp_path / "rule.safetensors", str(tmp_path)):
        found = load(path)
        assert type(found) is type(rule) and found.config == config(name) and found.meta_step == 7
        assert found.shapes == rule.shapes == shapes()
        states = found.state_dict(), rule.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][n], states[1][n]) and states[0][n].dtype == dtype for n in states[0])
        assert all(p.requires_grad for p in found.parameters())


def test_a_rule_made_for_longer_runs_is_saved_as_that(tmp_path):
    longer = load("factors").for_horizon(900)
    save(longer, tmp_path)
    found = load(tmp_path)
    scales = [module.time_scale for module in found.modules() if isinstance(module, Rule)]
    assert set(scales) == {longer.time_scale} != {1.0}
    rewrite(tmp_path, lambda tensors, meta: meta.update(time_scale=0.0))
    refused(tmp_path, "its header does not describe a rule")


def test_a_file_of_version_0_1_with_a_full_class_path_loads_and_is_written_by_class_name(tmp_path):
    old = Path(__file__).with_name("rule-0.1.safetensors")
    assert load_tensors(old)[1]["config"]["rule"]["class_path"] == "meta_teleport.learned.lstm.LSTMUpdateTele"
    rule = load(old)
    assert type(rule).__name__ == "LSTMUpdateTele" and rule.config == config() and rule.meta_step == 7
    save(rule, tmp_path)
    meta = load_tensors(tmp_path / "rule.safetensors")[1]
    assert meta["config"]["rule"]["class_path"] == "LSTMUpdateTele"


def test_a_file_of_version_0_1_with_old_names_of_arguments_and_bases_loads_and_is_written_by_the_new(tmp_path):
    tensors, old = load_tensors(Path(__file__).with_name("equivariant-0.1.safetensors"))
    arguments = old["config"]["rule"]["init_args"]
    assert (arguments["lead"], arguments["apart"], arguments["update"]) == (1, True, "falling_adam")
    assert arguments["bases"] == ["activations", "crest", "balance"] and arguments["first"]["crest"] == 0.55
    rule = load(Path(__file__).with_name("equivariant-0.1.safetensors"))
    expected = {
        "update": "decaying_adam",
        "bases": ["activations", "steepest", "balance"],
        "hidden_size": 4,
        "horizon": 6,
        "warmup_teleports": 1,
        "teleport_only_steps": True,
        "init_coefficients": {"steepest": 0.55, "balance": 1.0},
    }
    assert rule.config["rule"] == {"class_path": "Equivariant", "init_args": expected}
    assert rule.config["training"] == {"horizon": 6}
    assert (rule.warmup_teleports, rule.teleport_only_steps, rule.update.decays) == (1, True, True)
    assert all(torch.equal(value, tensors[name]) for name, value in rule.state_dict().items())
    fresh = build({"class_path": "Equivariant", "init_args": expected}, None, seed=5)
    assert all(torch.equal(value, tensors[name]) for name, value in fresh.state_dict().items())
    save(rule, tmp_path)
    assert load_tensors(tmp_path / "rule.safetensors")[1]["config"]["rule"]["init_args"] == expected


@pytest.mark.parametrize("path", NAMED.values(), ids=NAMED)
def test_shipped_rules_name_classes_only_and_nothing_by_an_old_name(path):
    config = load_tensors(path)[1]["config"]
    assert "meta_teleport." not in json.dumps(config)
    assert config == load(path).config


def test_a_loaded_rule_can_be_saved_again_into_a_new_folder(tmp_path):
    saved(tmp_path / "a")
    save(mt.load(tmp_path / "a"), tmp_path / "b" / "c")
    assert (tmp_path / "a" / "rule.safetensors").read_bytes() == (
        tmp_path / "b" / "c" / "rule.safetensors"
    ).read_bytes()


def test_a_rule_without_config_is_saved_with_what_it_was_made_with_or_not_at_all(tmp_path):
    rule = build(config()["rule"], shapes())
    save(rule, tmp_path / "made")
    assert load(tmp_path / "made").config["rule"]["init_args"].items() >= config()["rule"]["init_args"].items()
    rule.init_args = None
    with pytest.raises(UserError, match="has no config: give save one"):
        save(rule, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_shapes_survive_json():
    for family in (Regression(width=3, depth=3, bias=True), Regression(hidden=[4], inputs=5, outputs=2), Functions()):
        assert shapes_from_json(json.loads(json.dumps(shapes_to_json(shapes(family))))) == shapes(family)
    assert shapes_from_json(None) is None


def test_seeds_make_rules_and_the_global_generator_is_left_alone():
    built_for, state = shapes(), torch.get_rng_state()
    a, b, c = (build(config()["rule"], built_for, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    first = [next(iter(rule.parameters())) for rule in (a, b, c)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_rules_for_every_network_need_no_shapes():
    spec = {"class_path": "GradientDescent", "init_args": {"lr": 0.1}}
    assert isinstance(build(spec, None), GradientDescent)
    with pytest.raises(UserError, match="is built for one network: give its shapes"):
        build(config()["rule"], None)


def test_networks_that_do_not_fit_are_named():
    rule = build(config()["rule"], shapes())
    require_fit(rule, shapes())
    require_fit(GradientDescent(0.1), shapes())
    other = shapes(Regression(width=4, bias=True))
    with pytest.raises(UserError) as caught:
        require_fit(rule, other)
    assert describe(shapes()) in str(caught.value) and describe(other) in str(caught.value)
    assert describe(other).startswith("layers.0.weight 4x4, layers.0.bias 4")


def test_missing(tmp_path):
    refused(tmp_path / "none", "there is no file")
    refused("nope", "there is no rule 'nope': give a run folder, a saved rule, or one of this package's: factors, ")
    refused(tmp_path, "is neither a run folder nor a saved rule")
    Run.create(tmp_path / "run", config())
    refused(tmp_path / "run", "the run was stopped before its first checkpoint, go on with it by train --out")


def test_cut_off(tmp_path):
    saved(tmp_path)
    path = tmp_path / "rule.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    refused(tmp_path, "is cut off")


def test_a_run_folder_with_a_damaged_config(tmp_path):
    saved(tmp_path)
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "is cut off or not JSON")
    (tmp_path / "config.json").write_text('{"format": 2}')
    refused(tmp_path, "has format 2 and this version of meta_teleport reads format 1")


def rewrite(tmp_path, change):
    saved(tmp_path)
    tensors, meta = load_tensors(tmp_path / "rule.safetensors")
    change(tensors, meta)
    save_tensors(tmp_path / "rule.safetensors", tensors, meta)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda tensors, meta: meta.update(format=9), "has format 9 and this version of meta_teleport reads format 1"),
        (lambda tensors, meta: meta.pop("config"), "its header does not describe a rule"),
        (lambda tensors, meta: meta.update(shapes=[3]), "its header does not describe a rule"),
        (lambda tensors, meta: meta["config"].update(rule=3), "its header does not describe a rule"),
        (lambda tensors, meta: meta["config"]["rule"]["init_args"].update(hidden=3), "'hidden'; its arguments are"),
        (
            lambda tensors, meta: meta["config"]["rule"]["init_args"].update(hidden_size="many"),
            "rule.safetensors: LSTMUpdateTele: hidden_size is 'many', and that is no int",
        ),
        (lambda tensors, meta: meta["config"]["rule"].update(class_path="LSTMMagic"), "there is no Rule 'LSTMMagic'"),
        (lambda tensors, meta: tensors.pop("update_head.linear.bias"), "'update_head.linear.bias' is missing"),
        (lambda tensors, meta: tensors.update(extra=torch.ones(1)), "tensor 'extra' is not part of the rule"),
        (
            lambda tensors, meta: tensors.update({"update_head.linear.bias": torch.ones(2)}),
            "tensor 'update_head.linear.bias' is (2,) and the rule wants (24,)",
        ),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, change, text):
    rewrite(tmp_path, change)
    refused(tmp_path, text)


def test_a_file_never_decides_what_is_imported(tmp_path, monkeypatch):
    (tmp_path / "strangers_rule.py").write_text("import os\nos.mkdir('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    rewrite(tmp_path, lambda tensors, meta: meta["config"]["rule"].update(class_path="strangers_rule.Rule"))
    refused(tmp_path, "import strangers_rule first (--import strangers_rule)")
    assert "strangers_rule" not in sys.modules and not (tmp_path / "imported").exists()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_named_like_a_rule_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule.safetensors").write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path, "pickles never are")
    torch.save(Bomb(), tmp_path / "rule.safetensors")
    refused(tmp_path, "pickles never are")
    assert not (tmp_path / "exploded").exists()
