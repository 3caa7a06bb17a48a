import json

import pytest

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


def test_events_after_a_rewind_replace_those_of_the_same_steps(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    # files of one second and process are read in the order of their names, in which writer 10 comes before writer 9
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    run = Run.create(tmp_path / "r", CONFIG)
    for step in range(1, 5):
        run.log(step, {"loss": float(step)})
    run.rewind(2)
    run.log(3, {"loss": 30.0})
    run.close()
    events = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
