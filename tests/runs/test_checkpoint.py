import os
import pickle
import stat

import pytest
import torch

from meta_teleport.errors import UserError
from meta_teleport.runs.checkpoint import load_tensors, save_tensors, write_atomically

TENSORS = {
    "float": torch.tensor([[1.5, -0.0], [float("inf"), float("nan")]], dtype=torch.float64),
    "half": torch.tensor([1e-3], dtype=torch.float16),
    "flags": torch.tensor([True, False]),
    "step": torch.tensor(7),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "nothing": torch.zeros(0, 3),
}


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes()


def refused(path):
    with pytest.raises(UserError) as caught:
        load_tensors(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_round_trip_is_bitwise(tmp_path):
    meta = {"meta_step": 3, "config": {"hidden": [1, None, "x"], "size": 0.1}}
    save_tensors(tmp_path / "a.safetensors", TENSORS, meta)
    tensors, found = load_tensors(tmp_path / "a.safetensors")
    assert found == meta
    assert {name: bits(t) for name, t in tensors.items()} == {name: bits(t) for name, t in TENSORS.items()}


def test_the_bytes_follow_from_the_content(tmp_path):
    """The metadata of safetensors comes in any order: 30 files are alike by chance once in 2^29 times."""
    files = [tmp_path / f"{i}.safetensors" for i in range(30)]
    for file in files:
        save_tensors(file, {"größe": TENSORS["half"], **TENSORS}, {"a": "ä"})
    assert len({file.read_bytes() for file in files}) == 1
    laid_out, _ = load_tensors(files[0])
    assert list(map(bits, (laid_out["größe"], laid_out["float"]))) == list(
        map(bits, (TENSORS["half"], TENSORS["float"]))
    )


def test_tensors_may_share_memory_or_be_views_with_a_graph(tmp_path):
    base = torch.arange(6.0, requires_grad=True)
    save_tensors(tmp_path / "a.safetensors", {"a": base, "b": base, "c": base.view(2, 3).mT}, {})
    tensors, _ = load_tensors(tmp_path / "a.safetensors")
    assert torch.equal(tensors["a"], base) and torch.equal(tensors["b"], base)
    assert torch.equal(tensors["c"], base.view(2, 3).mT)
    tensors["a"].add_(1)
    assert torch.equal(tensors["b"], base)


def test_missing_file_and_folder_in_place_of_a_file(tmp_path):
    assert "there is no file" in refused(tmp_path / "none.safetensors")
    assert "cannot be read" in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 8, 9, 60, -1])
def test_cut_off(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {"a": 1})
    path.write_bytes(path.read_bytes()[:keep])
    assert "is cut off" in refused(path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_pickles_are_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle").write_bytes(pickle.dumps(Bomb()))
    torch.save({"a": Bomb()}, tmp_path / "torch")
    for name in ("pickle", "torch"):
        assert "pickles never are" in refused(tmp_path / name)
    assert not (tmp_path / "exploded").exists()
    pickle.loads((tmp_path / "pickle").read_bytes())
    assert (tmp_path / "exploded").exists(), "the bomb must be able to go off"


def test_files_of_others_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "plain")
    save_file({"a": torch.ones(2)}, tmp_path / "strange", {"meta": "{"})
    (tmp_path / "text").write_text("hello, this is no checkpoint")
    header = b'{"a":{"dtype":"F32"'
    (tmp_path / "header").write_bytes(len(header).to_bytes(8, "little") + header)
    for name in ("plain", "strange", "text", "header"):
        assert "is not a checkpoint" in refused(tmp_path / name)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"cannot be written .No space left on device.: check space and permissions"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_files_get_ordinary_permissions(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    write_atomically(tmp_path / "a", b"")
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == stat.S_IMODE(os.stat(tmp_path / "ordinary").st_mode)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        save_tensors(tmp_path / "no" / "a", {}, {})
