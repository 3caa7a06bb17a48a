import sys

import pytest

from meta_teleport.errors import UserError
from meta_teleport.learned.lstm import LSTMUpdate
from meta_teleport.registry import construct, import_module, known, resolve
from meta_teleport.rules.rule import Rule
from meta_teleport.tasks.family import TaskFamily
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.regression import Regression

REGRESSION = "meta_teleport.tasks.regression.Regression"


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module with a family that nothing has imported yet."""
    (tmp_path / "stranger_family.py").write_text(
        "from meta_teleport.tasks.regression import Regression\nclass Strange(Regression):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "stranger_family"
    sys.modules.pop("stranger_family", None)


def test_names_and_paths():
    assert resolve("Regression", TaskFamily) is resolve(REGRESSION, TaskFamily) is Regression
    assert resolve("meta_teleport.Functions", TaskFamily) is Functions
    assert resolve("LSTMUpdate", Rule) is LSTMUpdate


def test_what_is_known_can_be_built():
    assert {"Regression", "Functions"} <= set(known(TaskFamily))
    assert {"LSTMUpdate", "LSTMUpdateTele", "LSTMLrTele"} <= set(known(Rule))
    assert not {"Rule", "LSTMRule", "TaskFamily"} & (set(known(Rule)) | set(known(TaskFamily)))


@pytest.mark.parametrize("name", ["Regresion", "meta_teleport.tasks.regression.Nope", "os.path", "sys.path", ""])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(UserError, match=r"there is no TaskFamily .*choose one of .*Functions.*Regression"):
        resolve(name, TaskFamily)


def test_a_class_of_another_kind_is_refused():
    with pytest.raises(UserError, match="there is no TaskFamily"):
        resolve("meta_teleport.learned.lstm.LSTMUpdate", TaskFamily)


def test_a_strangers_module_is_not_imported(stranger):
    with pytest.raises(UserError, match="is not of this package: import stranger_family first"):
        construct({"class_path": f"{stranger}.Strange"}, TaskFamily)
    assert stranger not in sys.modules
    import_module(stranger)
    assert type(construct({"class_path": f"{stranger}.Strange"}, TaskFamily)).__name__ == "Strange"


def test_a_typed_name_is_imported(stranger):
    assert resolve(f"{stranger}.Strange", TaskFamily, trusted=True).__name__ == "Strange"


def test_modules_that_cannot_be_imported(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"module 'no_such_module' cannot be imported .ModuleNotFoundError"):
        import_module("no_such_module")
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('a\\nb')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be imported .RuntimeError: a b."):
        import_module("broken_module")


def test_construct():
    assert construct({"class_path": REGRESSION, "init_args": {"width": 3}}, TaskFamily).points == 3
    with pytest.raises(UserError, match=r"Regression: .*'witdh'; its arguments are width, depth, "):
        construct({"class_path": REGRESSION, "init_args": {"witdh": 3}}, TaskFamily)
    for spec in ({}, {"class_path": 3}, None, {"class_path": REGRESSION, "init_args": 3}):
        with pytest.raises(UserError, match="names no TaskFamily: give class_path and init_args"):
            construct(spec, TaskFamily)
