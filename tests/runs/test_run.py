import json
import os
import re
import warnings

import pytest
import torch

from meta_teleport.errors import UserError
from meta_teleport.runs.run import FORMAT, Run

CONFIG = {
    "task": {"class_path": "meta_teleport.tasks.regression.Regression", "init_args": {"width": 3}},
    "rule": {"class_path": "meta_teleport.learned.lstm.LSTMUpdate", "init_args": {}},
    "training": {"meta_steps": 3},
    "seed": 1,
    "dtype": "float32",
}


def refused(folder, text):
    with pytest.raises(UserError) as caught:
        Run.open(folder)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_create_then_open(tmp_path):
    made = Run.create(tmp_path / "deep" / "run", CONFIG)
    opened = Run.open(tmp_path / "deep" / "run")
    assert opened.config == made.config == {"format": FORMAT, **CONFIG}
    assert opened.rule_path == made.folder / "rule.safetensors"
    assert opened.state_path == made.folder / "training.safetensors"


def test_provenance(tmp_path):
    content = json.loads((Run.create(tmp_path / "r", CONFIG, "cpu").folder / "provenance.json").read_text())
    assert set(content) == {"revision", "dirty", "versions", "platform", "device", "time"}
    assert {"python", "torch", "numpy", "meta-teleport"} <= set(content["versions"])
    assert content["device"] == "cpu" and content["time"].endswith("+00:00")
    assert content["revision"] is None or len(content["revision"]) == 40


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(
        UserError, match="is not empty: choose another --out, go on with it by --resume, or begin anew by"
    ):
        Run.create(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="cannot be made"):
        Run.create(tmp_path / "mine" / "below", CONFIG)


def test_an_empty_folder_may_be_used(tmp_path):
    Run.create(tmp_path, CONFIG)
    assert Run.open(tmp_path).config["seed"] == 1


def test_what_is_no_run_folder(tmp_path):
    refused(tmp_path / "none", "there is no run folder")
    refused(tmp_path, "is not a run folder (no config.json in it)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1, "task"', "is cut off or not JSON"),
        ("", "is cut off or not JSON"),
        ("[1]", "holds no JSON object"),
        ('{"format": 99}', f"has format 99 and this version of meta_teleport reads format {FORMAT}"),
        ("{}", "has format None"),
        ('{"format": 1, "task": {}}', "is damaged (no 'rule' in it)"),
    ],
)
def test_damaged_configs(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, message)


def test_metrics_are_lines_of_json_and_events(tmp_path):
    run = Run.create(tmp_path / "r", CONFIG)
    for step in range(1, 5):
        run.log(step, {"loss": 0.1 / step, "bad": float("nan") if step == 2 else float("inf")})
    run.close()
    assert run.metrics() == [{"meta_step": s, "loss": 0.1 / s, "bad": None} for s in range(1, 5)]
    assert any((tmp_path / "r" / "tensorboard").iterdir())


def test_rewind_drops_later_metrics_and_a_line_that_was_cut_off(tmp_path):
    run = Run.create(tmp_path / "r", CONFIG)
    for step in range(1, 5):
        run.log(step, {"loss": float(step)})
    with run.metrics_path.open("a") as file:
        file.write('{"meta_step": 5, "lo')
    run.rewind(2)
    run.log(3, {"loss": 30.0})
    run.close()
    assert run.metrics() == [
        {"meta_step": 1, "loss": 1.0},
        {"meta_step": 2, "loss": 2.0},
        {"meta_step": 3, "loss": 30.0},
    ]


def test_events_after_a_rewind_replace_those_of_the_same_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run.create(tmp_path / "r", CONFIG)
    for step in range(1, 5):
        run.log(step, {"loss": float(step)})
    run.rewind(2)
    run.log(3, {"loss": 30.0})  # and is on disk at once
    events = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_flipped_bit_costs_the_line_it_is_in_and_no_other(tmp_path):
    run = Run.create(tmp_path / "r", CONFIG)
    for step in range(1, 5):
        run.log(step, {"loss": float(step)})
    whole = run.metrics_path.read_bytes()
    start, end = whole.index(b"\n") + 1, whole.index(b"\n", whole.index(b"\n") + 1)
    rows = run.metrics()
    for bit in range(8 * start, 8 * end):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        run.metrics_path.write_bytes(flipped)
        with warnings.catch_warnings(record=True, action="always") as said:
            found = run.metrics()
        # in a number or a name it may leave a line that can be read; a new line makes two that cannot
        assert [row for row in found if row in rows] == [rows[0], *rows[2:]]
        assert said or len(found) == 4
        for warning in said:
            assert re.search(
                r"metrics.jsonl: lines? 2(, 3)? cannot be read and (is|are) left out; the other 3", str(warning.message)
            )


def test_lines_that_cannot_be_read_are_named_and_dropped_by_a_rewind(tmp_path):
    run = Run.create(tmp_path / "r", CONFIG)
    for step in range(1, 4):
        run.log(step, {"loss": float(step)})
    first, *others = run.metrics_path.read_bytes().splitlines(keepends=True)
    bad = [b"[1]\n", b"\xff\n", b"\n", b'{"loss": 1}\n', b'{"meta_step": "1"}\n', b"[" * 100_000 + b"\n", b"7\n"]
    run.metrics_path.write_bytes(b"".join([first, *bad, *others, b'{"meta_step": 4, "lo']))
    with pytest.warns(UserWarning, match=r"lines 2, 3, 4, 5, 6, \.\.\. cannot be read .*; the other 3 are kept"):
        run.rewind(2)
    assert run.metrics_path.read_bytes() == first + others[0]
    run.close()


def test_a_rewind_of_nothing_but_a_line_that_was_cut_off(tmp_path):
    run = Run.create(tmp_path / "r", CONFIG)
    run.metrics_path.write_bytes(b'{"meta_st')
    run.rewind(0)
    run.log(1, {"loss": 1.0})
    assert run.metrics() == [{"meta_step": 1, "loss": 1.0}]


@pytest.mark.parametrize("left", [(), ("provenance.json",), ("provenance.json", ".config.0123456789abcdef.json")])
def test_a_folder_whose_making_was_stopped_is_taken_again(left, tmp_path):
    folder, made = tmp_path / "r", Run.create(tmp_path / "whole", CONFIG)
    folder.mkdir()
    (folder / "lock").write_bytes((made.folder / "lock").read_bytes())
    for name in left:
        (folder / name).write_text('{"form')
    refused(folder, "is not a run folder (no config.json in it)")
    assert Run.create(folder, CONFIG).config == made.config
    assert sorted(os.listdir(folder)) == ["config.json", "lock", "provenance.json"]
    assert json.loads((folder / "provenance.json").read_text())["device"] == "cpu"


def test_a_lock_of_others_makes_no_folder_ours(tmp_path):
    (tmp_path / "lock").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        Run.create(tmp_path, CONFIG)
    assert (tmp_path / "lock").read_text() == "precious"


def test_what_interrupted_writing_left_goes_at_the_next_start(tmp_path):
    run = Run.create(tmp_path / "r", CONFIG)
    run.close()
    ours = [
        ".training.0123456789abcdef.safetensors",
        ".config.json.abcd_123",
        ".training.2.0123456789abcdef.safetensors",
    ]
    others = [".notes.0123456789abcdef.txt", ".bashrc", ".training.safetensors", ".evaluation.0123456789abcdef.json"]
    for name in ours + others:
        (run.folder / name).write_text("x")
    Run.open(run.folder)
    assert set(ours + others) <= set(os.listdir(run.folder))
    Run.open(run.folder, lock=True)
    assert not set(ours) & set(os.listdir(run.folder)) and set(others) <= set(os.listdir(run.folder))


def test_metrics_are_on_disk_before_the_state_that_counts_them(tmp_path, monkeypatch):
    run, done = Run.create(tmp_path / "r", CONFIG), []
    run.log(1, {"loss": 1.0})
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def note(*arguments, name=name, real=real):
            done.append((name, os.path.realpath(f"/dev/fd/{arguments[0]}" if name == "fsync" else arguments[1])))
            return real(*arguments)

        monkeypatch.setattr(os, name, note)
    run.save({"a": torch.zeros(1)}, {"meta_step": 1})
    folder, state = str(run.folder), str(run.state_path)
    assert [where for _, where in done].index(str(run.metrics_path)) < done.index(("replace", state))
    assert done[done.index(("replace", state)) + 1] == ("fsync", folder)
    assert done[done.index(("replace", state)) - 1][0] == "fsync"
