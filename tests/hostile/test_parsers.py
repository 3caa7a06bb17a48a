"""Any bytes, and any plain data, give an object or one line: no parser and no loader raises anything else."""

import argparse
import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import meta_teleport as mt
from meta_teleport.cli.arguments import parse_evaluate, parse_info, parse_train
from meta_teleport.cli.class_choice import FAMILIES_AND_RULES, read_config
from meta_teleport.cli.device import chosen
from meta_teleport.cli.info import inspect_run, pairs
from meta_teleport.cli.parser import shape
from meta_teleport.evaluation.results import _note
from meta_teleport.evaluation.tuning import FILE, _read
from meta_teleport.learned.serialization import NAMED, shapes_from_json, trained_config
from meta_teleport.meta.saved_states import require_own
from meta_teleport.registry import construct
from meta_teleport.rules.rule import Rule
from meta_teleport.runs.checkpoint import load_tensors, save_tensors
from meta_teleport.runs.files import read_arrays
from meta_teleport.runs.run import Run
from meta_teleport.specs import check, shorten
from meta_teleport.tasks.family import TaskFamily

few = settings(
    derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
numbers = st.none() | st.booleans() | st.integers() | st.floats()
words = st.text(max_size=8) | st.sampled_from(
    ["class_path", "init_args", "Regression", "os.mkdir", "x.y", "[a]", "'a'"]
)
plain = st.recursive(
    numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
KEYS = ("format", "task", "rule", "training", "seed", "dtype", "import")
SPEC = {"class_path": "Regression", "init_args": {"width": 3}}
CONFIG = {
    "format": 1,
    "task": SPEC,
    "rule": {"class_path": "Coordinatewise", "init_args": {"hidden_size": 3}},
    "training": {"meta_steps": 2, "horizon": 4},
    "seed": 0,
    "dtype": "float32",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tried(*calls: Callable[[], Any]) -> None:
    """Every call gives something, or refuses in one line."""
    for call in calls:
        try:
            call()
        except mt.UserError as error:
            assert "\n" not in str(error).strip() and len(str(error)) < 2000


def changed(whole: bytes, changes: list[tuple[int, int]], end: int) -> bytes:
    """The bytes, some of them others, cut off at the end."""
    content = bytearray(whole)
    for place, value in changes:
        content[place % len(content)] = value
    return bytes(content[: len(content) - end])


damage = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6)


@few
@given(st.binary(max_size=200))
def test_rule_files_of_any_bytes(place: Path, content: bytes) -> None:
    path = place / "a.safetensors"
    path.write_bytes(content)
    tried(lambda: mt.load(path), lambda: load_tensors(path), lambda: trained_config(path))


@few
@given(damage, st.integers(0, 3))
def test_rule_files_with_damage(place: Path, changes: list[tuple[int, int]], end: int) -> None:
    path = place / "a.safetensors"
    path.write_bytes(changed(NAMED["classification"].read_bytes(), changes, end))
    tried(lambda: mt.load(path), lambda: trained_config(path))


@few
@given(st.dictionaries(st.sampled_from(["config", "shapes", "meta_step", "experience", "format"]), plain, max_size=2))
@example({"config": {"rule": {"class_path": "Coordinatewise", "init_args": {"hidden_size": 10**9}}}})
@example({"config": {"rule": {"class_path": "LSTMUpdate"}}, "shapes": {"params": [["a", [10**9, 10**9]]], "sites": []}})
def test_rule_files_with_any_header(place: Path, changes: dict[str, Any]) -> None:
    path = place / "a.safetensors"
    tensors, meta = load_tensors(NAMED["classification"])
    save_tensors(path, tensors, {**meta, **changes})
    tried(lambda: mt.load(path), lambda: trained_config(path))


@few
@given(plain)
def test_shapes_of_any_json(content: Any) -> None:
    with contextlib.suppress(KeyError, TypeError, ValueError):  # what mt.load takes for damage
        shapes_from_json(content)


@few
@given(st.binary(max_size=100) | plain.map(lambda content: json.dumps(content).encode()))
def test_configs_and_results_of_any_bytes(place: Path, content: bytes) -> None:
    for name in ("config.json", "metrics.jsonl", FILE, "evaluation.json"):
        (place / name).write_bytes(content)
    run = Run(place, {})
    tried(lambda: Run.open(place), run.metrics, lambda: _read(place), lambda: _note(place / "evaluation.json", {}))


@few
@given(st.dictionaries(st.sampled_from(KEYS), plain, max_size=2), plain, st.binary(max_size=60))
def test_runs_with_any_entry(place: Path, changes: dict[str, Any], result: Any, metrics: bytes) -> None:
    folder = place / "run"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "provenance.json").write_text(json.dumps({"a": result}))
    (folder / "evaluation.json").write_text(json.dumps({"family": result, "provenance": result}))
    (folder / "metrics.jsonl").write_bytes(metrics)
    tried(
        lambda: list(pairs(inspect_run(str(folder)))),
        lambda: parse_train(["--out", str(folder), "--resume"]),
        lambda: parse_train(["--out", "new", "--config", str(folder / "config.json")]),
        lambda: parse_evaluate([str(folder)]),
    )


@few
@given(st.text(max_size=60) | plain.map(yaml.safe_dump))
@example("a: &a [*a]")
@example("seed: 0x" + "f" * 40_000)
def test_config_files_of_any_text(place: Path, content: str) -> None:
    (place / "c.yaml").write_bytes(content.encode("utf-8", "surrogatepass"))
    tried(lambda: read_config("c.yaml", [], []), lambda: parse_train(["--out", "new", "--config", "c.yaml"]))


@few
@given(plain)
def test_specs_of_any_data(content: Any) -> None:
    tried(
        lambda: check(content, FAMILIES_AND_RULES),
        lambda: shorten(content),
        lambda: construct(content, TaskFamily),
        lambda: construct(content, Rule),
    )


@few
@given(st.sampled_from(["Regression", "Mixture", "DeepLinear", "Functions"]), st.data())
def test_arguments_of_any_kind(name: str, data: st.DataObject) -> None:
    import inspect

    names = list(inspect.signature(getattr(mt, name)).parameters)
    arguments = data.draw(st.dictionaries(st.sampled_from([*names, "more"]), plain, max_size=3))
    tried(lambda: construct({"class_path": name, "init_args": arguments}, TaskFamily))


@few
@given(st.binary(max_size=100))
def test_archives_of_any_bytes(place: Path, content: bytes) -> None:
    (place / "a.npz").write_bytes(content)
    tried(lambda: read_arrays(place / "a.npz", ["x"]), lambda: mt.load_images(place / "a.npz"))


@few
@given(damage, st.integers(0, 3), st.binary(max_size=80), st.booleans())
def test_archives_with_damage(
    place: Path, changes: list[tuple[int, int]], end: int, member: bytes, in_archive: bool
) -> None:
    buffer = io.BytesIO()
    x, y = np.arange(48.0).reshape(12, 4), np.arange(12) % 3
    np.savez_compressed(buffer, x_train=x, y_train=y, x_test=x, y_test=y)
    whole = buffer.getvalue()
    (place / "a.npz").write_bytes(changed(whole, changes, end))
    if in_archive:
        with zipfile.ZipFile(place / "a.npz", "w") as archive:
            archive.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + member)
    tried(lambda: mt.load_images(place / "a.npz"))


@settings(few, max_examples=6)
@given(st.text(max_size=20) | st.from_regex(r"[\d,x\[\] -]{0,20}", fullmatch=True))
def test_options_of_any_text(place: Path, text: str) -> None:
    with contextlib.suppress(argparse.ArgumentTypeError, ValueError):  # both of which argparse tells in one line
        assert all(isinstance(size, int) for size in shape(text))
    tried(lambda: chosen(text))
    for option in ("--seed", "--dtype", "--tasks", "--steps", "--horizon"):
        tried(lambda option=option: parse_evaluate([f"{option}={text}", "classification"]))
    for option in ("--seed", "--dtype", "--task", "--rule", "--task.width", "--training.tasks", "--config", "--import"):
        tried(lambda option=option: parse_train([f"{option}={text}", "--out", "new"]))
    tried(lambda: parse_info([f"--{text}", "classification"]) if not text.startswith("h") else None)


@few
@given(plain)
def test_states_that_say_anything(content: Any) -> None:
    numbers = {"of": {"rule": {"class_path": "a"}, "families": [], "seed": 0}, "meta_step": 1, "failed": 0}
    tried(
        lambda: require_own({}, content if isinstance(content, dict) else {}, {}, numbers),
        lambda: require_own({}, {**numbers, "of": content}, {}, numbers),
        lambda: require_own({}, {**numbers, "meta_step": content}, {}, numbers),
    )
