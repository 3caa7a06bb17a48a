import subprocess
import sys
from importlib.metadata import version

import pytest

import meta_teleport as mt
from meta_teleport.cli.main import main


def test_every_public_name_exists():
    assert len(mt.__all__) > 10
    for name in mt.__all__:
        assert getattr(mt, name).__name__ == name and name in dir(mt)
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = mt.nope


@pytest.mark.parametrize(("old", "new"), [("Copies", "Ensemble"), ("each", "per_copy"), ("Training", "TrainingConfig")])
def test_an_old_name_is_the_new_one_with_a_warning(old, new):
    with pytest.warns(DeprecationWarning, match=f"mt.{old} is called mt.{new}"):
        assert getattr(mt, old) is getattr(mt, new)
    assert old not in mt.__all__


def test_importing_the_package_is_cheap():
    code = (
        "import sys, meta_teleport; print([m for m in ('torch', 'torchvision', 'learn2learn', 'matplotlib') "
        "if m in sys.modules]); [getattr(meta_teleport, name) for name in meta_teleport.__all__]; print([m for m in "
        "('torchvision', 'learn2learn', 'matplotlib', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_the_module_is_the_program():
    done = subprocess.run([sys.executable, "-m", "meta_teleport", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: meta-teleport COMMAND")


def test_the_version_is_that_of_the_distribution(capsys):
    assert mt.__version__ == version("meta-teleport")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"meta-teleport {mt.__version__}\n"
