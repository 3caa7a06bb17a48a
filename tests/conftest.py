"""Fixtures that every folder of the suite uses."""

from collections.abc import Iterator

import pytest
import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device of this machine; a machine without an accelerator skips nothing."""
    return request.param


@pytest.fixture(autouse=True, scope="session")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the program keeps of its user (see ``runs/seal.py``) is kept beside the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of random numbers with a fixed seed, one per test."""
    return torch.Generator().manual_seed(20240507)
