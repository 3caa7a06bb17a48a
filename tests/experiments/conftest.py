"""Scripts that a test starts import this checkout, wherever they are started from."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
