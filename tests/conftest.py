"""Fixtures that every folder of the suite uses."""

import pytest
import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device of this machine; a machine without an accelerator skips nothing."""
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of random numbers with a fixed seed, one per test."""
    return torch.Generator().manual_seed(20240507)
