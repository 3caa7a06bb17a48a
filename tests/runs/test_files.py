"""Files that somebody else may have made: none is believed before it is looked at."""

import io
import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import meta_teleport as mt
from meta_teleport.errors import UserError
from meta_teleport.runs.checkpoint import load_tensors, read_header, save_tensors
from meta_teleport.runs.files import PACKED, TEXT, opened, parse_json, read_arrays, read_text

GIGABYTE = 2**30


def claimed(shape: tuple[int, ...]) -> bytes:
    """An array file whose header says more than what follows."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return head.getvalue() + bytes(64)


def sparse(path: Path, head: bytes = b"", size: int = 100 * GIGABYTE) -> Path:
    path.write_bytes(head)
    os.truncate(path, size)
    return path


def zipped(path: Path, member: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{key}.npy", member)
    return path


def packed(path: Path) -> Path:
    """A few megabytes that would be gigabytes of zeros."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (1_000_000, 28, 28)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            with archive.open(f"{key}.npy", "w") as file:
                file.write(head.getvalue())
                for _ in range(784):
                    file.write(bytes(1_000_000))
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def large(path: Path) -> Path:
    """A rule file whose header is right in all but the sizes that it claims: a hole as long as these."""
    header = {
        "__metadata__": {"meta": json.dumps({"format": 1})},
        "a": {"dtype": "F32", "shape": [GIGABYTE], "data_offsets": [0, 4 * GIGABYTE]},
    }
    text = json.dumps(header).encode()
    return sparse(path, struct.pack("<Q", len(text)) + text, 8 + len(text) + 4 * GIGABYTE)


HOSTILE: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "pipe": ("a.safetensors", pipe, "is a device or a pipe"),
    "device": ("a.safetensors", lambda path: path.symlink_to("/dev/zero") or path, "is a device or a pipe"),
    "hole": ("a.safetensors", sparse, "at most 4,096 MB are read here"),
    "zeros": ("a.safetensors", lambda path: sparse(path, size=GIGABYTE), "is a hole, 1,024 MB of nothing"),
    "header": ("a.safetensors", lambda path: sparse(path, b"\xff" * 7 + b"\0{", 2**19), "is not a checkpoint"),
    "claim": ("a.safetensors", large, "at most 4,096 MB are read here"),
    "deep": ("a.safetensors", lambda path: deep(path), "is not a checkpoint"),
    "npz pipe": ("a.npz", pipe, "is a device or a pipe"),
    "npz device": ("a.npz", lambda path: path.symlink_to("/dev/zero") or path, "is a device or a pipe"),
    "npz claim": ("a.npz", lambda path: zipped(path, claimed((2**40,))), "holds something else than plain arrays"),
    "npz negative": ("a.npz", lambda path: zipped(path, claimed((-1,))), "holds something else than plain arrays"),
    "npz packed": ("a.npz", packed, "would unpack to"),
}


def deep(path: Path) -> Path:
    text = b'{"__metadata__": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_little_memory(name: str, tmp_path: Path) -> None:
    file, make, message = HOSTILE[name]
    path = make(tmp_path / file)
    load: Callable[[Any], Any] = mt.load_images if path.suffix == ".npz" else mt.load
    with pytest.raises(UserError, match=message) as raised:
        load(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


MEASURED = """
import resource, sys
import meta_teleport as mt
from pathlib import Path
limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 200 * 2**20
for name in sys.argv[1:]:
    try:
        (mt.load_images if name.endswith("npz") else mt.load)(Path(name))
    except mt.UserError:
        pass
    else:
        sys.exit(f"{name} was read")
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
sys.exit(used > limit and f"{used / 2**20:.0f} MB, and the limit is {limit / 2**20:.0f}")
"""


@pytest.mark.slow
def test_all_of_them_together_take_less_than_200_megabytes(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"{i}{file}") for i, (file, make, _) in enumerate(HOSTILE.values())]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, paths)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_rule_of_another_size_than_its_file_is_refused_before_it_is_made(tmp_path: Path) -> None:
    rule = mt.load("classification")
    config = json.loads(json.dumps(rule.config))
    config["rule"]["init_args"]["hidden_size"] = 1_000_000  # 4 TB of recurrent weights
    save_tensors(tmp_path / "rule.safetensors", rule.state_dict(), {"format": 1, "config": config, "shapes": None})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="choose smaller sizes"):
        mt.load(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "step": torch.tensor([7])}
    save_tensors(path, tensors, {"format": 1, "note": "as it was"})
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError):
            load_tensors(path)
    path.write_bytes(whole)
    laid = load_tensors(path)
    assert torch.equal(laid[0]["weight"], tensors["weight"]) and laid[1]["note"] == "as it was"


def test_a_file_without_a_checksum_is_read(tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "old.safetensors"
    path.write_bytes(safetensors.torch.save({"a": torch.ones(2)}, {"meta": json.dumps({"format": 1})}))
    assert read_header(path).checksum is None and load_tensors(path)[1] == {"format": 1}


def test_arrays_as_numpy_writes_them(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.arange(6).reshape(2, 3)), "c": np.array(3)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays, other=np.zeros(3))
        found = read_arrays(tmp_path / "a.npz", arrays)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_zeros_that_pack_well_are_read_up_to_the_bound(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(100_000, np.uint8))
    assert (tmp_path / "a.npz").stat().st_size * PACKED < 2**20
    assert read_arrays(tmp_path / "a.npz", ["a"])["a"].sum() == 0


def test_text_has_a_bound_a_coding_and_a_depth(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(UserError, match="at most 32 MB are read here"):
        read_text(sparse(path, size=TEXT + 1))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is cut off or no text"):
        read_text(path)
    for text, message in (("[" * 100_000, "nested too deep"), ("{", "is cut off or not JSON")):
        with pytest.raises(UserError, match=message):
            parse_json(text, path)
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"), opened(tmp_path):
        pass


def test_events_are_not_written_through_a_link(tmp_path: Path) -> None:
    from meta_teleport.runs.run import Run

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = Run.create(tmp_path / "run", {"task": {}})
    (run.folder / "tensorboard").symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link to elsewhere"):
        run.log(0, {"meta_loss": 1.0})
    assert not list(elsewhere.iterdir())
