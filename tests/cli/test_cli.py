import io
import json
import os
import signal
import sys

import pytest
import torch

import meta_teleport as mt
from meta_teleport.cli.main import main
from meta_teleport.runs.checkpoint import load_tensors
from meta_teleport.runs.lock import Lock

SMALL = ["--training.tasks=4", "--training.window=2", "--training.horizon=4", "--rule.hidden_size=4"]
TINY = [*SMALL, "--task.width=3"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty working directory; modules that a test writes there are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def train(out, *flags, steps=3):
    return main(["train", "--out", str(out), f"--training.meta_steps={steps}", *TINY, *flags])


def error(capsys, *argv):
    """The one line that a command fails with."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("meta-teleport: error: ") and captured.err.count("\n") == 1
    assert len(captured.err) < 500
    return captured.err.removeprefix("meta-teleport: error: ").strip()


def same_file(a, b):
    (tensors, meta), (others, other_meta) = load_tensors(a), load_tensors(b)
    return (
        tensors.keys() == others.keys()
        and all(torch.equal(tensors[name], others[name]) for name in tensors)
        and meta == other_meta
    )


def losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["meta_step"], row["meta_loss"]) for row in rows]


def test_train_writes_a_run_that_loads(workplace, capsys):
    assert train("a/b", "--seed=3", "--training.log_every=1") == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.startswith("a/b: 3 meta-steps")
    config = json.loads((workplace / "a/b/config.json").read_text())
    assert config["task"]["class_path"] == "Regression"
    assert config["task"]["init_args"]["width"] == 3 and config["task"]["init_args"]["points"] is None
    assert config["rule"]["class_path"] == "LSTMUpdateTele"
    assert config["seed"] == 3 and config["dtype"] == "float32" and config["training"]["meta_steps"] == 3
    assert [step for step, _ in losses(workplace / "a/b")] == [1, 2, 3]
    rule = mt.load("a/b")
    assert rule.config == config and rule.meta_step == 3


def test_seeds_are_those_that_torch_takes(workplace, capsys):
    for seed in ("-1", str(2**63)):
        assert "Not of type Seed" in error(capsys, "train", "--out", "a", "--seed", seed)
    assert not os.path.exists("a")


def test_the_seed_decides(workplace):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(name, f"--seed={seed}") == 0
    assert same_file(workplace / "a/training.safetensors", workplace / "b/training.safetensors")
    assert not same_file(workplace / "a/training.safetensors", workplace / "c/training.safetensors")


def test_float64(workplace):
    assert train("a", "--dtype=float64", "--rule=LSTMLrTele") == 0
    assert {p.dtype for p in mt.load("a").parameters()} == {torch.float64}


def stop_after(monkeypatch, steps, signum):
    """Sends this process a signal within the given meta-step."""
    from meta_teleport.meta.loop import Trainer

    step = Trainer.step

    def interrupted(self):
        if self.meta_step == steps - 1:
            os.kill(os.getpid(), signum)
        return step(self)

    monkeypatch.setattr(Trainer, "step", interrupted)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stop_and_resume_is_bit_for_bit(workplace, capsys, monkeypatch, signum):
    flags, handler = ["--training.log_every=1", "--training.save_every=3"], signal.getsignal(signum)
    assert train("whole", *flags, steps=7) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4, signum)
        capsys.readouterr()
        assert train("parts", *flags, steps=7) == 130
    err = capsys.readouterr().err
    assert err == "stopped after 4 of 7 meta-steps; go on by: meta-teleport train --out parts --resume\n"
    assert signal.getsignal(signum) == handler
    assert mt.load("parts").meta_step == 4
    assert main(["train", "--out", "parts", "--resume"]) == 0
    for name in ("training.safetensors", "rule.safetensors"):
        assert same_file(workplace / "whole" / name, workplace / "parts" / name)
    assert losses(workplace / "whole") == losses(workplace / "parts")


def test_resume_after_a_crash_computes_the_lost_steps_again(workplace, monkeypatch):
    from meta_teleport.meta.loop import Trainer

    flags = ["--training.log_every=1", "--training.save_every=2"]
    assert train("whole", *flags, steps=5) == 0
    step = Trainer.step

    def crash(self):
        if self.meta_step == 3:
            raise ZeroDivisionError
        return step(self)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Trainer, "step", crash)
        train("parts", *flags, steps=5)
    assert main(["train", "--out", "parts", "--resume"]) == 0
    assert same_file(workplace / "whole/rule.safetensors", workplace / "parts/rule.safetensors")
    assert losses(workplace / "whole") == losses(workplace / "parts")


def test_a_run_that_stopped_before_any_checkpoint(workplace, capsys):
    assert train("a") == 0
    for name in ("rule", "training"):
        (workplace / f"a/{name}.safetensors").rename(workplace / f"{name}.old")
    assert "the run was stopped before its first checkpoint" in error(capsys, "evaluate", "a")
    assert main(["info", "a"]) == 0
    assert "no checkpoint yet; go on by: meta-teleport train --out a --resume" in capsys.readouterr().out
    assert main(["train", "--out", "a", "--resume"]) == 0
    assert same_file(workplace / "a/training.safetensors", workplace / "training.old")


def test_resume_without_a_state_is_refused_and_changes_nothing(workplace, capsys):
    assert train("a") == 0
    (workplace / "a/training.safetensors").unlink()
    before = {path.name: path.read_bytes() for path in (workplace / "a").glob("*.*")}
    assert "holds a trained rule and no state to go on from" in error(capsys, "train", "--out", "a", "--resume")
    assert {path.name: path.read_bytes() for path in (workplace / "a").glob("*.*")} == before


@pytest.mark.filterwarnings("always")
def test_what_a_resumed_run_could_not_read_is_said_in_a_line_each(workplace, capsys):
    flags = ["--training.log_every=1", "--training.save_every=1"]
    assert train("a", *flags) == 0
    for name in ("metrics.jsonl", "training.safetensors"):
        content = bytearray((workplace / "a" / name).read_bytes())
        content[-1 if name == "training.safetensors" else 0] ^= 1
        (workplace / "a" / name).write_bytes(content)
    capsys.readouterr()
    assert main(["train", "--out", "a", "--resume"]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("meta-teleport: warning: a/training.safetensors is damaged") and "meta-step 2" in first
    assert second.startswith(
        "meta-teleport: warning: a/metrics.jsonl: line 1 cannot be read and is left out; the other"
    )


def test_two_processes_and_one_folder(workplace, capsys):
    assert train("a") == 0
    lock = Lock(workplace / "a")
    for flags in (["--resume"], ["--overwrite"]):
        assert f"a is in use by process {os.getpid()} on" in error(capsys, "train", "--out", "a", *flags)
    assert main(["info", "a"]) == 0
    lock.release()
    assert main(["train", "--out", "a", "--resume"]) == 0


def test_resume_may_only_ask_for_more_meta_steps(workplace, capsys):
    assert train("a") == 0
    assert main(["train", "--out", "a", "--resume", "--training.meta_steps=5", "--seed=0", *TINY]) == 0
    assert mt.load("a").meta_step == 5
    assert json.loads((workplace / "a/config.json").read_text())["training"]["meta_steps"] == 5
    kept = (workplace / "a/rule.safetensors").read_bytes()
    for flag, text in (
        ("--training.meta_steps=4", "has training.meta_steps 5 and 4 was given"),
        ("--seed=1", "has seed 0 and 1 was given"),
        ("--task.width=4", "has task.width 3 and 4 was given"),
        (
            "--rule=LSTMUpdate",
            "has rule.class_path LSTMUpdateTele and LSTMUpdate was given",
        ),
        ("--dtype=float64", "has dtype float32 and float64 was given"),
    ):
        message = error(capsys, "train", "--out", "a", "--resume", flag)
        assert text in message and "leave that flag out" in message
    assert (workplace / "a/rule.safetensors").read_bytes() == kept


def test_a_run_that_is_older_than_some_settings_goes_on_with_their_defaults(workplace, capsys):
    flags = ["--training.log_every=1", "--training.tasks=3"]
    assert train("whole", *flags, steps=5) == 0
    assert train("old", *flags, steps=3) == 0
    assert train("whole3", *flags, "--training.decay=constant", steps=3) == 0
    path = workplace / "old/config.json"
    config = json.loads(path.read_text())
    lost = [config["training"].pop(name) for name in ("floor", "staggered", "decay")]
    lost += [config["rule"]["init_args"].pop("safeguard"), config["task"]["init_args"].pop("noise")]
    assert lost == [0.0, True, "cosine", True, 0.0]
    path.write_text(json.dumps(config))
    for flag, text in (
        ("--training.floor=0.1", "has training.floor 0.0 and 0.1 was given"),
        ("--rule.safeguard=false", "has rule.safeguard True and False was given"),
        ("--task.noise=0.5", "has task.noise 0.0 and 0.5 was given"),
    ):
        assert text in error(capsys, "train", "--out", "old", "--resume", flag)
    kept = path.read_bytes()
    assert main(["train", "--out", "old", "--resume", "--training.decay=cosine"]) == 0
    assert path.read_bytes() != kept and json.loads(path.read_text())["training"]["decay"] == "cosine"
    assert main(["train", "--out", "old", "--resume", "--training.meta_steps=5"]) == 0
    assert mt.load("old").meta_step == 5


def test_a_run_of_version_0_1_goes_on_by_the_names_of_today(workplace, capsys):
    flags = ["--rule=Equivariant", "--rule.bases=[activations,steepest]", "--rule.warmup_teleports=1"]
    flags += ["--rule.init_coefficients={activations: -1.0}", "--rule.hidden_size=2", "--training.log_every=1"]
    small = [flag for flag in TINY if not flag.startswith("--rule")]
    assert main(["train", "--out=old", "--training.meta_steps=3", *small, *flags]) == 0
    path = workplace / "old/config.json"
    config = json.loads(path.read_text())
    arguments = config["rule"]["init_args"]
    for old, new in (("lead", "warmup_teleports"), ("apart", "teleport_only_steps"), ("first", "init_coefficients")):
        arguments[old] = arguments.pop(new)
    arguments["bases"] = ["activations", "crest"]
    config["training"] |= {"curriculum": False, "random_horizons": False, "growing_horizon": False}
    path.write_text(json.dumps(config))
    assert main(["train", "--out=old", "--resume", "--training.meta_steps=4"]) == 0
    now = json.loads(path.read_text())
    assert now["rule"]["init_args"]["bases"] == ["activations", "steepest"] and "lead" not in now["rule"]["init_args"]
    assert now["training"]["meta_steps"] == 4 and "curriculum" not in now["training"]
    path.write_text(json.dumps({**now, "training": {**now["training"], "curriculum": True}}))
    message = error(capsys, "train", "--out=old", "--resume")
    assert "sets training.curriculum, which this version does not have: go on with the version" in message
    assert main(["info", "old"]) == 0


def test_a_progress_bar_on_terminals_only(capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert train("a") == 0
    assert "3/3" in terminal.getvalue() and "task-steps/s" in terminal.getvalue() and "0 failed" in terminal.getvalue()
    assert main(["evaluate", "a", *EVALUATE]) == 0
    assert "100%" in terminal.getvalue() and "lbfgs 4/4" in terminal.getvalue()


def test_config_files_and_flags_that_win_over_them(workplace):
    (workplace / "c.yaml").write_text(
        "task: Functions\nrule:\n  class_path: LSTMLrTele\n  init_args: {hidden_size: 3}\nseed: 4\n"
        "training: {tasks: 4, window: 2, horizon: 4, meta_steps: 2}\n"
    )
    assert main(["train", "--config", "c.yaml", "--out", "a", "--task.function", "booth", "--seed", "5"]) == 0
    config = json.loads((workplace / "a/config.json").read_text())
    assert config["task"] == {
        "class_path": "Functions",
        "init_args": {"function": "booth"},
    }
    assert config["rule"]["init_args"]["hidden_size"] == 3 and config["seed"] == 5
    assert main(["train", "--out", "b", "--task", "Regression", "--task.width=3", "--config", "c.yaml"]) == 0
    assert json.loads((workplace / "b/config.json").read_text())["task"]["class_path"] == "Regression"


def test_the_defaults_of_one_class_do_not_reach_another(workplace):
    (workplace / "own_rules.py").write_text(
        "from meta_teleport.learned.lstm import LSTMUpdate\n"
        "class Small(LSTMUpdate):\n"
        "    def __init__(self, shapes, hidden_size: int = 5):\n"
        "        super().__init__(shapes, hidden_size)\n"
    )
    flags = [f for f in TINY if "hidden_size" not in f]
    assert main(["train", "--out=a", "--rule=own_rules.Small", "--training.meta_steps=1", *flags]) == 0
    assert mt.load("a").hidden_size == 5


OWN = """
from meta_teleport.learned.lstm import LSTMUpdate
from meta_teleport.tasks.regression import Regression

class Scaled(Regression):
    '''Regression with larger labels.

    Args:
        scale: Factor on the labels.
    '''
    def __init__(self, scale: float = 2.0) -> None:
        super().__init__(width=3)
        self.scale = scale

    def sample(self, *args, **kwargs):
        tasks = super().sample(*args, **kwargs)
        tasks.data["labels"] *= self.scale
        return tasks

class Mine(LSTMUpdate):
    '''A rule of one's own.'''
    def __init__(self, shapes, hidden_size: int = 4) -> None:
        super().__init__(shapes, hidden_size)
"""


@pytest.mark.parametrize("update", ["polyak", "adam", "coordinatewise", "plain_adam"])
def test_rules_of_every_size_from_the_command_line(workplace, capsys, update):
    flags = [f"--rule.update={update}", "--rule.bases=[incoming, outgoing]", "--rule.averaging=0.5", "--rule.every=2"]
    assert train("a", "--rule", "Equivariant", "--task", "Regression", *flags, "--task.action=scaling") == 0
    config = json.loads((workplace / "a/config.json").read_text())["rule"]
    assert config["class_path"] == "Equivariant"
    assert (config["init_args"]["update"], config["init_args"]["averaging"]) == (update, 0.5)
    rule = mt.load("a")
    assert rule.bases == ("incoming", "outgoing") and rule.every == 2 and rule.hidden_size == 4
    assert rule.meta_groups()["element"] and bool(rule.meta_groups()["update"]) == (update != "plain_adam")


def test_rules_without_teleports_from_the_command_line(workplace, capsys):
    assert train("a", "--rule=Equivariant", "--rule.bases=[]", "--rule.update=coordinatewise") == 0
    assert mt.load("a").bases == ()
    assert train("b", "--rule=Coordinatewise", "--rule.features=raw") == 0
    assert train("c", "--rule=Layerwise", "--rule.direction=adam") == 0
    assert [type(mt.load(name)).__name__ for name in ("b", "c")] == ["Coordinatewise", "Layerwise"]
    for flags, text in (
        (["--rule=Equivariant", "--rule.bases=[]", "--rule.update=gd"], "has no meta-parameters to train"),
        (["--rule=Equivariant", "--rule.update=sgd"], "unknown update 'sgd': choose one of polyak, adam, muon"),
        (["--rule=Equivariant", "--rule.bases=[gram]"], "unknown basis 'gram': choose from activations"),
        (["--rule=Coordinatewise", "--rule.features=x"], "'features': expected one of 'normalized', 'raw'"),
        (["--rule=Coordinatewise", "--rule.horizon=0"], "hidden_size 4 and horizon 0 must both be at least 1"),
    ):
        assert text in error(capsys, "train", "--out", "d", *TINY, *flags)
    assert not (workplace / "d").exists()


def test_families_and_rules_of_ones_own(workplace, capsys):
    (workplace / "own_things.py").write_text(OWN)
    flags = [*SMALL, "--training.meta_steps=1"]
    assert (
        main(["train", "--out=a", "--task=own_things.Scaled", "--task.scale=3", "--rule=own_things.Mine", *flags]) == 0
    )
    config = json.loads((workplace / "a/config.json").read_text())
    assert config["task"] == {"class_path": "own_things.Scaled", "init_args": {"scale": 3.0}}
    assert main(["train", "--out=b", "--import=own_things", "--task=Scaled", "--rule=Mine", *flags]) == 0
    assert type(mt.load("a")).__name__ == "Mine"
    del sys.modules["own_things"]
    for command in ("train --resume --out", "evaluate"):
        assert "import own_things first (--import own_things)" in error(capsys, *command.split(), "a")
    assert main(["train", "--out=a", "--resume", "--import", "own_things"]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "task: own_trap.Trap",
        "task: {class_path: own_trap.Trap}",
        "rule: own_trap.Trap",
        "task.class_path: own_trap.Trap",
        "task: {init_args: {inner: [{class_path: own_trap.Trap}]}}",
    ],
)
def test_a_config_file_never_decides_what_is_imported(workplace, capsys, monkeypatch, text):
    monkeypatch.syspath_prepend(str(workplace))
    (workplace / "own_trap.py").write_text("import os\nos.mkdir('imported')\n")
    (workplace / "c.yaml").write_text(text)
    message = error(capsys, "train", "--out", "a", "--config", "c.yaml")
    assert "import own_trap first (--import own_trap)" in message
    assert not (workplace / "imported").exists() and not (workplace / "a").exists()


PAYLOAD = {"class_path": "own_trap.Trap"}
PROGRAM = {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "imported"]}}
HOSTILE = {
    "Any, a module of the folder": {"class_path": "FewShot", "init_args": {"data": [PAYLOAD, 1]}},
    "Any, a program": {"class_path": "FewShot", "init_args": {"data": [PROGRAM, PROGRAM]}},
    "families": {"class_path": "Mixture", "init_args": {"families": [PAYLOAD]}},
    "families, a program": {"class_path": "Mixture", "init_args": {"families": [PROGRAM]}},
    "a list of strings": {"class_path": "Mixture", "init_args": {"families": ["own_trap.Trap"]}},
    "a string": {"class_path": "Mixture", "init_args": {"families": json.dumps([PAYLOAD])}},
    "a string with escapes": {
        "class_path": "Mixture",
        "init_args": {"families": '[{"class\\u005fpath": "own_trap.Trap"}]'},
    },
    "a string in a string": {"class_path": "Mixture", "init_args": {"families": [json.dumps(PAYLOAD)]}},
    "a dotted key": {"class_path": "FewShot", "init_args": {}, "init_args.data.class_path": "own_trap.Trap"},
    "a mixture of mixtures": {
        "class_path": "Mixture",
        "init_args": {"families": [{"class_path": "Mixture", "init_args": {"families": [PAYLOAD]}}]},
    },
    "a class that is no family": {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "imported"]}},
    "a package of the folder": {
        "class_path": "Mixture",
        "init_args": {"families": [{"class_path": "own_package.payload.Trap"}]},
    },
}


@pytest.mark.parametrize("where", HOSTILE)
@pytest.mark.parametrize("command", ["train --resume --out", "evaluate", "train --out new --config"])
def test_a_strangers_run_never_decides_what_is_executed(workplace, capsys, monkeypatch, where, command):
    """A module that leaves a mark when it is imported lies where Python looks for modules, a program is named."""
    monkeypatch.syspath_prepend(str(workplace))
    (workplace / "own_package").mkdir()
    for place in ("own_trap.py", "own_package/payload.py"):
        (workplace / place).write_text("import os\nos.mkdir('imported')\n")
    assert train("a") == 0
    config = json.loads((workplace / "a/config.json").read_text())
    path = workplace / "a/config.json"
    path.write_text(json.dumps({**config, "task": HOSTILE[where]}))
    if "config" in command:
        path = workplace / "c.yaml"
        path.write_text(json.dumps({"task": HOSTILE[where]}))
    kept = (workplace / "a/rule.safetensors").read_bytes()
    message = error(capsys, *command.split(), path if "config" in command else "a")
    assert "import own_" in message or "there is no TaskFamily 'subprocess.Popen'" in message or "Rule" in message
    assert not (workplace / "imported").exists() and not (workplace / "new").exists()
    assert (workplace / "a/rule.safetensors").read_bytes() == kept


def test_a_run_of_version_0_1_with_full_class_paths_goes_on(workplace, capsys):
    for name, paths in (
        ("old", {"task": "meta_teleport.tasks.regression.Regression", "rule": "meta_teleport.learned.lstm.LSTMUpdate"}),
        ("moved", {"task": "meta_teleport.families.Regression", "rule": "meta_teleport.nowhere.LSTMUpdate"}),
    ):
        assert train(name, "--rule=LSTMUpdate") == 0
        config = json.loads((workplace / name / "config.json").read_text())
        for key, path in paths.items():
            config[key]["class_path"] = path
        (workplace / name / "config.json").write_text(json.dumps(config))
        assert main(["train", "--out", name, "--resume", "--training.meta_steps=4"]) == 0
        assert mt.load(name).meta_step == 4
        assert main(["evaluate", name, "--tasks=4", "--steps=4"]) == 0
        written = json.loads((workplace / name / "config.json").read_text())
        assert [written[key]["class_path"] for key in ("task", "rule")] == ["Regression", "LSTMUpdate"]


def test_a_class_name_that_two_modules_define(workplace, capsys):
    (workplace / "own_twin.py").write_text(
        "from meta_teleport.tasks.regression import Regression as Ours\nclass Regression(Ours):\n    pass\n"
    )
    flags = ["--import", "own_twin", "--training.meta_steps=1", *TINY]
    message = error(capsys, "train", "--out=a", "--task=Regression", *flags)
    assert message == (
        "several modules define a class 'Regression': write meta_teleport.Regression or own_twin.Regression"
    )
    for number, path in enumerate(("meta_teleport.Regression", "own_twin.Regression")):
        assert main(["train", f"--out={number}", f"--task={path}", *flags]) == 0
    written = [json.loads((workplace / f"{n}/config.json").read_text())["task"]["class_path"] for n in (0, 1)]
    assert written == ["Regression", "own_twin.Regression"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--task=Nope"], "there is no TaskFamily 'Nope': choose one of Adapters, AttentionPairs, "),
        (["--task=meta_teleport.tasks.regression.Nope"], "there is no TaskFamily"),
        (["--task=no_such_module.Nope"], "module 'no_such_module' cannot be imported"),
        (["--import", "no_such_module"], "module 'no_such_module' cannot be imported"),
        (["--rule=Nope"], "there is no Rule 'Nope': choose one of "),
        (["--rule=Whitening"], "Whitening has no meta-parameters to train"),
        (["--rule=Adam", "--rule.lr=0.1"], "Adam has no meta-parameters to train"),
        (["--task.witdh=3"], "'witdh' is not accepted (did you mean 'width'?) (see: meta-teleport train --help)"),
        (["--task=Regresion"], "there is no TaskFamily 'Regresion' (did you mean 'Regression'?): choose one of "),
        (["--rule=equivarient"], "there is no Rule 'equivarient' (did you mean 'Equivariant'?): choose one of "),
        (["--traning.tasks=5"], "--traning.tasks=5 (did you mean '--training.tasks'?)"),
        (["--config=neste.yaml"], "there is no file neste.yaml (did you mean 'nested.yaml'?)"),
        (["--device=mps"], "there is no MPS device that torch can use: choose --device cpu"),
        (["--task.width=abc"], "'width': expected int. Got value: abc"),
        (["--task.width=0"], "width 0 and depth 2 do not make a network"),
        (["--task.points=-1"], "a tensor of these sizes cannot be made"),
        (["--task.points=30"], "at most 20 points and the batch has 30"),
        (["--task.activation=foo"], "unknown activation 'foo': choose one of identity"),
        (["--rule.hidden_size=0"], "hidden_size 0 and layers 2 must both be at least 1"),
        (["--rule.features=cooked"], "'features': expected one of 'raw', 'normalized'. Got value: cooked"),
        (["--training.window=3"], "is no multiple of window 3"),
        (["--training.meta_steps=0"], "training.meta_steps is 0: give 1 or more"),
        (["--training.meta_step=5"], "--training.meta_step=5 (did you mean '--training.meta_steps'?)"),
        (["--nope", "3"], "unrecognized arguments: --nope 3"),
        (["--seed=x"], "'seed': Not of type Seed: "),
        (["--dtype=float16"], "'dtype': expected one of 'float32', 'float64'. Got value: float16"),
        (["--device=tpu"], "unknown device 'tpu': choose auto, cpu, cuda, cuda:1 (by its number) or mps"),
        (["--config=none.yaml"], "there is no file none.yaml: check the path"),
        (["--config=bad.yaml"], "config file bad.yaml is not valid YAML"),
        (["--config=list.yaml"], "config file list.yaml must hold settings"),
        (["--config=nested.yaml"], "and no other config file"),
        (["--config=unknown.yaml"], "'tusk' is not accepted"),
        (["--config=type.yaml"], "expected int. Got value: abc"),
        (["--task=bad.yaml"], "module 'bad' cannot be imported"),
        (["--resume"], "there is no run folder out"),
        (["--out"], "argument --out: expected one argument"),
    ],
)
def test_what_train_refuses(workplace, capsys, flags, text):
    for name, content in (
        ("bad", "task: [1\n"),
        ("list", "- 1\n"),
        ("nested", "config: bad.yaml\n"),
        ("unknown", "tusk: 3\n"),
        ("type", "training: {tasks: abc}\n"),
    ):
        (workplace / f"{name}.yaml").write_text(content)
    assert text in error(capsys, "train", "--out", "out", *flags)
    assert not (workplace / "out").exists()


def test_cuda_where_there_is_none(workplace, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train("a") == 0
    for command in (["train", "--out", "b"], ["evaluate", "a"]):
        assert "there is no CUDA device that torch can use: choose --device cpu" in error(
            capsys, *command, "--device", "cuda"
        )
        assert "there is no CUDA device that torch can use" in error(capsys, *command, "--device", "cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "there is no cuda:2, the last CUDA device is cuda:1" in error(capsys, *command, "--device", "cuda:2")
    assert not (workplace / "b").exists()


def test_other_refusals(workplace, capsys):
    assert "the following arguments are required: out" in error(capsys, "train")
    assert "the following arguments are required: run" in error(capsys, "evaluate")
    assert "unknown command 'frob': choose one of train, evaluate, info, symmetries, doctor" in error(capsys, "frob")
    assert "doctor takes no arguments" in error(capsys, "doctor", "x")
    assert "unknown command 'trian' (did you mean 'train'?)" in error(capsys, "trian")
    assert "there is no run folder none" in error(capsys, "info", "none")
    assert "is not a run folder" in error(capsys, "info", ".")
    assert "there is no rule 'none'" in error(capsys, "evaluate", "none")
    assert "is neither a run folder nor a saved rule" in error(capsys, "evaluate", ".")
    assert train("a") == 0
    os.rename("a", "runs-small")
    assert "there is no run folder runs-smal (did you mean 'runs-small'?)" in error(capsys, "info", "runs-smal")
    assert "there is no rule 'runs-smal' (did you mean 'runs-small'?)" in error(capsys, "evaluate", "runs-smal")
    assert "(did you mean '--tasks'?)" in error(capsys, "evaluate", "runs-small", "--taks", "3")
    os.rename("runs-small", "a")
    before = sorted(os.listdir("a"))
    assert "folder a is not empty: choose another --out" in error(capsys, "train", "--out", "a", *TINY)
    assert "'tasks': expected int. Got value: x" in error(capsys, "evaluate", "a", "--tasks", "x")
    assert "must all be at least 1" in error(capsys, "evaluate", "a", "--tasks", "0")
    message = error(capsys, "evaluate", "a", "--task.width", "4")
    assert "layers.0.weight 3x3" in message and "layers.0.weight 4x4" in message
    assert "there is no TaskFamily 'Nope'" in error(capsys, "evaluate", "a", "--task", "Nope")
    assert sorted(os.listdir("a")) == before
    (workplace / "a/config.json").write_text('{"format": 2}')
    assert "has format 2 and this version of meta_teleport reads format 1" in error(capsys, "info", "a")
    (workplace / "a/config.json").write_text('{"form')
    assert "is cut off or not JSON" in error(capsys, "train", "--out", "a", "--resume")


def test_info(capsys):
    assert train("a", "--training.log_every=1") == 0
    capsys.readouterr()
    assert main(["info", "a", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["meta_step"] == 3 and content["config"]["seed"] == 0 and content["last_metrics"]["meta_step"] == 3
    assert content["evaluated"] is False and "python" in content["provenance"]["versions"]
    assert main(["info", "a"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("a: 3 of 3 meta-steps saved\n") and "config.task.init_args.width" in shown


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    assert {"torch", "learn2learn", "cuda"} <= {line.split()[0] for line in captured.out.splitlines()}
    assert captured.err == ""


def test_help_lists_the_flags_of_the_chosen_classes(capsys):
    assert main(["--help"]) == 0 and "train" in capsys.readouterr().out
    assert main([]) == 2
    for argv, texts in (
        (
            ["train", "--help"],
            ("--task.width", "--rule.networks", "--training.window", "--resume", "--seed", "--import"),
        ),
        (["train", "--task", "Functions", "--help"], ("--task.function", "--rule.networks")),
        (["evaluate", "--help"], ("--tasks", "--steps", "--json", "--task NAME")),
        (["info", "--help"], ("--json",)),
    ):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        shown = capsys.readouterr().out
        assert caught.value.code == 0 and all(text in shown for text in texts)


def test_the_second_interrupt_and_any_other_ends_with_130(capsys, monkeypatch):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("meta_teleport.cli.main._info", interrupt)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "meta-teleport: interrupted\n"


EVALUATE = ["--tasks", "4", "--steps", "4"]


def test_evaluate_writes_what_it_prints(workplace, capsys):
    assert train("a") == 0
    capsys.readouterr()
    lock = Lock(workplace / "a")
    assert main(["evaluate", "a", *EVALUATE, "--json"]) == 0  # beside a process that trains there
    lock.release()
    captured = capsys.readouterr()
    content, (path,) = json.loads(captured.out), (workplace / "a").glob("evaluation*.json")
    assert captured.err == "" and content == json.loads(path.read_text())
    assert (content["schema"], content["tasks"], content["steps"]) == (2, 4, 4)
    assert "lstm-update-tele" in content["methods"] and "adam" in content["methods"]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not [name for name in os.listdir("a") if name.startswith(".")]
    rule = mt.load("a")
    again = mt.evaluate(rule, mt.Regression(width=3), horizon=4, tasks=4, steps=4, folder=workplace / "a").to_json()
    for name, method in content["methods"].items():
        assert again["methods"][name]["median"] == method["median"]


def test_evaluate_on_another_member_of_the_family(workplace, capsys, monkeypatch):
    from meta_teleport.evaluation import evaluation

    asked = {}

    def note(rule, family, **settings):
        asked.update(settings, family=family, rule=rule)
        raise KeyboardInterrupt

    assert train("a", "--task.bias=true") == 0
    monkeypatch.setattr(evaluation, "evaluate", note)
    assert main(["evaluate", "--task.data", "gaussian", "a", "--dtype=float64", "--seed=7"]) == 130
    assert asked["family"].data == "gaussian" and asked["family"].model.layers[0].bias is not None
    assert asked["dtype"] == torch.float64 and asked["seed"] == 7 and asked["tasks"] == 256 and asked["steps"] is None
    assert {p.dtype for p in asked["rule"].parameters()} == {torch.float64}
    assert not [name for name in os.listdir("a") if name.startswith("evaluation")]


def test_an_interrupted_figure_leaves_the_last_evaluation(workplace, monkeypatch):
    from meta_teleport.evaluation import results

    assert train("a") == 0
    assert main(["evaluate", "a", *EVALUATE]) == 0
    before = {p.name: p.read_bytes() for p in (workplace / "a").iterdir() if p.is_file()}

    def interrupt(evaluation, path, horizon):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "plot_evaluation", interrupt)
    assert main(["evaluate", "a", *EVALUATE]) == 130
    assert {p.name: p.read_bytes() for p in (workplace / "a").iterdir() if p.is_file()} == before


FACTORIES = """
import torch
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(2, 4)

def bare():
    return mlp()[0]

def number():
    return 3

def broken():
    raise ValueError("no such file")

def half():
    return mlp()[0].half(), torch.randn(2, 4)
"""


def test_symmetries_prints_what_was_found(workplace, capsys):
    (workplace / "own_models.py").write_text(FACTORIES)
    assert main(["symmetries", "own_models:mlp", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(s["group"], s["k"], s["producers"]) for s in found["sites"]] == [
        ("PositiveScaling", 6, ["0.weight", "0.bias"]),
        ("Permutation", 6, ["0.weight", "0.bias"]),
    ]
    assert found["drift"] < 1e-12 and found["reached"] == (4 * 6 + 6 + 6 * 3) / (4 * 6 + 6 + 6 * 3 + 3)
    assert found["refusals"] == [
        {"parameters": ["2.weight", "2.bias"], "reason": "makes units that are outputs of the model"}
    ]
    for shape in ("[2,4]", "2,4", "(2, 4)"):
        assert main(["symmetries", "own_models:bare", "--shape", shape, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["sites"] == found["sites"]
    assert "is no shape: write sizes with commas" in error(capsys, "symmetries", "own_models:bare", "--shape", "2;4")
    assert main(["symmetries", "own_models:bare", "--shape", "2,4", "--eval"]) == 0
    shown = capsys.readouterr().out
    assert "PositiveScaling(6)" in shown and "every input" in shown and "outputs of the model" in shown


def test_symmetries_refuses_what_it_cannot_use(workplace, capsys):
    (workplace / "own_models.py").write_text(FACTORIES)
    assert "write package.module:name" in error(capsys, "symmetries", "own_models")
    assert "cannot be imported" in error(capsys, "symmetries", "own_nothing:mlp")
    assert "no callable 'numbr' (did you mean 'number'?)" in error(capsys, "symmetries", "own_models:numbr")
    assert "failed (ValueError: no such file, own_models.py line 15)" in error(
        capsys, "symmetries", "own_models:broken"
    )
    assert "returned a int" in error(capsys, "symmetries", "own_models:number")
    assert "pass --shape" in error(capsys, "symmetries", "own_models:bare")
    assert "does not run on the example inputs" in error(capsys, "symmetries", "own_models:bare", "--shape", "[2,5]")
    assert "has a negative size" in error(capsys, "symmetries", "own_models:bare", "--shape", "[-1,4]")
    assert "keep the parameters in float32" in error(capsys, "symmetries", "own_models:half")
