"""Files and folders as nobody should send them: made from one good run, each broken in one way.

``python -m hostile.cases GOOD FOLDER`` (from ``tests/``) writes them all, to be looked at. Every folder lies beside
``own_payload.py``, which leaves a mark when it is imported, and every program that is named leaves one too.
"""

import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meta_teleport.runs.checkpoint import load_tensors, save_tensors

MARK = "executed"
PAYLOAD = {"class_path": "own_payload.Trap"}
PROGRAM = {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", MARK]}}
MODULE = f"import os\nos.makedirs({MARK!r}, exist_ok=True)\nclass Trap: pass\n"
GIGABYTE = 2**30
Change = Callable[[Path], Any]


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (MARK,)


def spec(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


def mixture(*families: Any) -> dict[str, Any]:
    return spec("Mixture", families=list(families))


def nested(depth: int) -> dict[str, Any]:
    inner = spec("Regression")
    for _ in range(depth):
        inner = mixture(inner)
    return inner


def text(content: str | bytes) -> Change:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def hole(head: bytes = b"", size: int = 100 * GIGABYTE) -> Change:
    def make(path: Path) -> None:
        path.write_bytes(head)
        os.truncate(path, size)

    return make


FILES: dict[str, Change] = {
    "a pipe": pipe,
    "a device": device,
    "a hole": hole(),
    "empty": text(""),
    "no text": text(b"\xff\xfe\x00\x80"),
    "cut off": text('{"format": 1, "task": {'),
    "deep": text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "a list": text("[1, 2]"),
    "numbers without end": text('{"a": 1' + "0" * 10_000 + "}"),
    "many values": text('{"a": [' + "[]," * 1_200_000 + "0]}"),
    "a pickle": text(pickle.dumps(Bomb())),
}
"""What may lie in place of any file."""


def config(**changes: Any) -> Change:
    """The run's config with other entries; those below ``training`` beside the others."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        training = changes.get("training", {})
        content |= changes | ({"training": {**content["training"], **training}} if isinstance(training, dict) else {})
        path.write_text(json.dumps(content))

    return change


CONFIGS: dict[str, Change] = {
    "a module as task": config(task=PAYLOAD),
    "a module as rule": config(rule=PAYLOAD),
    "a module of the folder": config(task={"class_path": "stranger.payload.Trap"}),
    "Any": config(task=spec("FewShot", data=[PAYLOAD, 1])),
    "Any, a program": config(task=spec("FewShot", data=[PROGRAM, PROGRAM])),
    "families": config(task=mixture(PAYLOAD)),
    "families, a program": config(task=mixture(PROGRAM)),
    "families of text": config(task=mixture("own_payload.Trap")),
    "families in quotes": config(task=mixture("' own_payload.Trap '")),
    "families as text": config(task=spec("Mixture", families=json.dumps([PAYLOAD]))),
    "families with escapes": config(task=spec("Mixture", families='[{"class\\u005fpath": "own_payload.Trap"}]')),
    "text in text": config(task=mixture(json.dumps(PAYLOAD))),
    "text in text in text": config(task=mixture(json.dumps([json.dumps(PAYLOAD)]))),
    "a dotted key": config(task={**spec("FewShot"), "init_args.data.class_path": "own_payload.Trap"}),
    "a dotted key outside": config(**{"task.init_args.data.class_path": "own_payload.Trap"}),
    "mixtures in mixtures": config(task=mixture(mixture(PAYLOAD))),
    "a program as task": config(task=PROGRAM),
    "a program as rule": config(rule=PROGRAM),
    "a function": config(task={"class_path": "os.mkdir", "init_args": {"path": MARK}}),
    "an argument that is a module": config(rule=spec("Equivariant", update="own_payload.Trap")),
    "a list of modules as argument": config(rule=spec("Equivariant", bases=["own_payload.Trap"])),
    "a rule with a rule": config(rule=spec("WithoutElements", rule=PAYLOAD)),
    "a training of text": config(training="own_payload.Trap"),
    "a training in a file": config(training="training.yaml"),
    "modules to import": config(task=PAYLOAD, **{"import": ["own_payload; mkdir executed", "own_payload", 3]}),
    "no task": config(task=None),
    "a task of text": config(task="Regression"),
    "a task of numbers": config(task=3),
    "no rule": config(rule=None),
    "a rule of lists": config(rule=[["class_path", "LSTMUpdate"]]),
    "no training": config(training=None),
    "a seed of text": config(seed="own"),
    "a negative seed": config(seed=-1),
    "a large seed": config(seed=2**64),
    "int8": config(dtype="int8"),
    "no dtype": config(dtype=None),
    "a dtype of lists": config(dtype=["float32"]),
    "a format of text": config(format="1"),
    "an unknown setting": config(training={"payload": "own_payload.Trap"}),
    "an endless horizon": config(training={"horizon": 10**15}),
    "no horizon": config(training={"horizon": None}),
    "no meta-steps": config(training={"meta_steps": 0}),
    "many tasks": config(training={"tasks": 10**9}),
    "a rate that is no number": config(training={"lr_update": float("nan")}),
    "a penalty without end": config(training={"increase_penalty": float("inf")}),
    "150 mixtures": config(task=nested(150)),
    "a million layers": config(rule=spec("LSTMUpdate", layers=10**6)),
    "a wide rule": config(rule=spec("LSTMUpdate", hidden_size=10**7)),
    "a wide network": config(task=spec("Regression", width=10**6)),
    "a wide network in a mixture": config(task=mixture(spec("Regression", width=10**6))),
    "a deep network": config(task=spec("Regression", depth=10**9)),
    "hidden layers of size 0": config(task=spec("Regression", hidden=[0])),
    "outputs of size 0": config(task=mixture(spec("Classification", hidden=[0]))),
    "a negative width": config(task=spec("Regression", width=-3)),
    "noise that is no number": config(task=mixture(spec("Regression", noise=float("nan")))),
    "a width of text": config(task=mixture(spec("Regression", width="3"))),
    "many points": config(task=spec("Regression", points=10**12, allow_drift=True)),
    "a transformer of a million layers": config(task=spec("Adapters", layers=10**6)),
    "a large map": config(task=spec("Factorization", outputs=10**6)),
    "a download": config(task=spec("FewShot", data="mnist", folder="../elsewhere", download=True)),
    "a download in a mixture": config(task=mixture(spec("Classification", data="mnist", download=True))),
    "pickled images": config(task=spec("FewShot", data="mini_imagenet", folder="pickles", download=True)),
    "pickled images in a mixture": config(task=mixture(spec("FewShot", data="omniglot", folder="pickles"))),
    "a device as images": config(task=spec("Classification", data="zero.npz")),
    "a pickle in an archive": config(task=spec("Classification", data="bomb.npz")),
}
CODES = {
    "control codes as values": config(task=spec("Regression", activation="\x1b[2J\x1b]0;owned\x07")),
    "control codes as names": config(**{"\x1b[2J": 1}),
}


def rule(change: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any], file: str = "rule") -> Change:
    """The run's rule, or its state, with other tensors or another header."""

    def make(folder: Path) -> None:
        path = folder / f"{file}.safetensors"
        tensors, meta = load_tensors(path)
        tensors, meta = dict(tensors), json.loads(json.dumps(meta))
        change(tensors, meta)
        save_tensors(path, tensors, meta)

    return make


def header(**entries: Any) -> bytes:
    content = json.dumps({"__metadata__": {"meta": json.dumps({"format": 1})}, **entries}).encode()
    return struct.pack("<Q", len(content)) + content


def claim(shape: list[Any], dtype: str = "F32", end: int = 4) -> bytes:
    return header(a={"dtype": dtype, "shape": shape, "data_offsets": [0, end]}) + bytes(4)


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(name for name in tensors if tensors[name].ndim)


RULES: dict[str, Change] = {
    "int8": rule(lambda t, m: t.update({name: value.to(torch.int8) for name, value in t.items()})),
    "one tensor in half": rule(lambda t, m: t.update({first(t): t[first(t)].half()})),
    "a tensor less": rule(lambda t, m: t.pop(first(t))),
    "a tensor more": rule(lambda t, m: t.update(more=torch.zeros(3))),
    "a class of a module": rule(lambda t, m: m["config"].update(rule=PAYLOAD)),
    "a program": rule(lambda t, m: m["config"].update(rule=PROGRAM)),
    "a size of a million": rule(lambda t, m: m["config"]["rule"]["init_args"].update(hidden_size=10**6)),
    "a size of text": rule(lambda t, m: m["config"]["rule"]["init_args"].update(hidden_size="many")),
    "a size of 0": rule(lambda t, m: m["config"]["rule"]["init_args"].update(hidden_size=0)),
    "a meta-step of text": rule(lambda t, m: m.update(meta_step="\x1b[2J")),
    "an experience of numbers": rule(lambda t, m: m.update(experience={"layers": 3})),
    "shapes of text": rule(lambda t, m: m.update(shapes={"params": [["a", ["x"]]], "sites": []})),
    "a config of text": rule(lambda t, m: m.update(config="own_payload.Trap")),
    "a deep config": rule(lambda t, m: m["config"].update(task=nested(150))),
}
HEADERS: dict[str, Change] = {
    "a claim of a terabyte": text(claim([2**38], end=2**40)),
    "a claim without end": text(claim([2**62, 2**62])),
    "infinite": text(claim([1]).replace(b'"shape": [1]', b'"shape": [1e400]')),
    "negative": text(claim([-1, -1])),
    "a claim for nothing": text(claim([0, 2**62], end=0)),
    "another dtype": text(claim([1], "F8")),
    "a long header": hole(struct.pack("<Q", 2**40) + b"{", 2**20),
    "a torch file": lambda path: torch.save(Bomb(), path),
}
STATES: dict[str, Change] = {
    "another seed": rule(lambda t, m: m["of"].update(seed=99), "training"),
    "another rule": rule(lambda t, m: m["of"].update(rule={"class_path": "own_payload.Trap"}), "training"),
    "a tensor less": rule(lambda t, m: t.pop("due"), "training"),
    "a generator of zeros": rule(lambda t, m: t["generator"].zero_(), "training"),
    "a meta-step of text": rule(lambda t, m: m.update(meta_step="own"), "training"),
}
RESULTS: dict[str, Change] = {
    "provenance of nothing": text('{"provenance": null, "seed": "\\u001b[2J"}'),
    "control codes": text('{"family": "\\u001b[2J", "tasks": {"\\u001b": 1}}'),
}
METRICS: dict[str, Change] = {
    "rows that are no objects": text("[1]\n3\nnull\n"),
    "rows without a step": text('{"a": 1}\n{"meta_step": "own"}\n'),
}
TUNINGS: dict[str, Change] = {
    "entries of numbers": text('{"schema": 1, "entries": [3, null, {"key": 1, "settings": "own_payload.Trap"}]}'),
    "entries of text": text('{"schema": 1, "entries": "own_payload.Trap"}'),
}


def aliases() -> str:
    """Nine lists of nine lists of ...: 10^9 values in a few lines."""
    steps = zip("abcdefgh", "bcdefghi", strict=True)
    return "a: &a [1, 2, 3]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in steps)


YAML: dict[str, Change] = {
    "a python tag": text(f"task: !!python/object/apply:os.mkdir [{MARK}]\n"),
    "a name of a module": text("task: own_payload.Trap\n"),
    "aliases": text(aliases()),
    "itself": text("task: &a {class_path: Mixture, init_args: {families: [*a]}}\n"),
    "deep": text("a: " + "[" * 5000 + "]" * 5000),
    "a date": text("seed: 2020-01-01\n"),
    "a set": text("task: !!set {a, b}\n"),
    "bytes": text("out: !!binary aGVsbG8=\n"),
    "keys of numbers": text("1: 2\ntask: {3: 4}\n"),
    "a large integer": text("seed: 0x" + "f" * 50_000 + "\n"),
    "a folder elsewhere": text("out: ../../elsewhere\n"),
    "to overwrite": text("overwrite: true\n"),
    "another file": text("config: training.yaml\n"),
    "a training in a file": text("training: training.yaml\n"),
    "a program in a training": text("training: {class_path: subprocess.Popen, init_args: {args: [mkdir, executed]}}\n"),
    "large": text("a: 1\n" * 200_000),
}


def archive(**members: bytes | np.ndarray) -> Change:
    def make(path: Path) -> None:
        whole = {"x_train": np.zeros((12, 4)), "y_train": np.arange(12) % 3, "x_test": np.zeros((3, 4))}
        whole = {**whole, "y_test": np.arange(3), **members}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in whole.items():
                file.writestr(f"{name}.npy", content if isinstance(content, bytes) else saved(content))

    return make


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def array_header(shape: tuple[int, ...], descr: Any = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(64)


NPZ: dict[str, Change] = {
    "a pickle": archive(x_train=saved(np.array([Bomb()], dtype=object))),
    "a claim": archive(x_train=array_header((2**40,))),
    "a negative claim": archive(x_train=array_header((-1,))),
    "zeros": archive(x_train=saved(np.zeros((8_000_000,), np.uint8))),
    "labels of 2^63": archive(y_train=(np.arange(12) % 3).astype(np.uint64) + np.uint64(2**63)),
    "labels of 10^9": archive(y_train=(np.arange(12) % 3) * 10**9),
    "1e300": archive(x_train=np.full((12, 4), 1e300)),
    "nothing": archive(y_test=np.zeros(0, np.int64), x_test=np.zeros((0, 4))),
    "texts": archive(y_train=np.array(list("abcabcabcabc"))),
    "a header that is a program": archive(
        x_train=b"\x93NUMPY\x01\x00v\x00" + b"{'descr': __import__('os').mkdir('executed')}".ljust(117) + b"\n"
    ),
    "no archive": text(b"PK\x03\x04" + bytes(100)),
}


def folders() -> Iterator[tuple[str, str, Change]]:
    """Name, the file that is broken, and how: as a whole folder, or that file alone."""
    for file, kinds in (
        ("config.json", {**CONFIGS, **CODES}),
        ("rule.safetensors", RULES),
        ("training.safetensors", STATES),
    ):
        for name, change in kinds.items():
            yield f"{file}, {name}", file, change
    for file, kinds in (
        ("config.json", FILES),
        ("rule.safetensors", {**FILES, **HEADERS}),
        ("training.safetensors", FILES),
        ("metrics.jsonl", {**FILES, **METRICS}),
        ("tuning.json", {**FILES, **TUNINGS}),
        ("evaluation-own-seed0-01234567.json", {**FILES, **RESULTS}),
        ("provenance.json", {name: FILES[name] for name in ("a pipe", "deep")}),
    ):
        for name, change in kinds.items():
            yield f"{file}: {name}", file, lambda folder, file=file, change=change: change(folder / file)


def write_folders(good: Path, place: Path) -> dict[str, tuple[str, Path]]:
    """All broken runs by name, in numbered folders below ``place``: the file that is broken, and the folder."""
    made = {}
    for number, (name, file, change) in enumerate(folders()):
        made[name] = file, place / f"run{number}"
        shutil.copytree(good, place / f"run{number}")
        change(place / f"run{number}")
    return made


def write_files(place: Path) -> dict[str, Path]:
    """All broken configs and archives below ``place``, and what runs refer to."""
    (place / "own_payload.py").write_text(MODULE)
    (place / "stranger").mkdir()
    (place / "stranger/payload.py").write_text(MODULE)
    (place / "training.yaml").write_text("own_payload.Trap: 3\n")
    (place / "pickles").mkdir()
    for name in ("mini-imagenet-cache-train", "mini-imagenet-cache-test", "omniglot-bookkeeping"):
        (place / f"pickles/{name}.pkl").write_bytes(pickle.dumps({"image_data": Bomb()}))
    device(place / "zero.npz")
    NPZ["a pickle"](place / "bomb.npz")
    made = {}
    for ending, changes in (("yaml", YAML), ("npz", NPZ)):
        for number, (name, change) in enumerate({**FILES, **changes}.items()):
            made[f"{ending}: {name}"] = place / f"file{number}.{ending}"
            change(made[f"{ending}: {name}"])
    return made


if __name__ == "__main__":
    for case, path in write_files(Path(sys.argv[2])).items():
        print(path, case)
    for case, (_, path) in write_folders(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(path, case)
