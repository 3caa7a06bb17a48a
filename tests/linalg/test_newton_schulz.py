"""The iteration of Muon on single singular values."""

import pytest
import torch

from meta_teleport.linalg.newton_schulz import newton_schulz


def test_five_steps_bring_singular_values_from_a_five_hundredth_up_to_near_one() -> None:
    """Keller Jordan's polynomial: what is small grows by its slope at 0, 3.4445, at every step."""
    values = torch.cat([torch.logspace(-2.7, 0, 1000, dtype=torch.float64), torch.tensor([1e-9]).double()])
    found = newton_schulz(values[:, None, None]).flatten()
    assert 0.68 < float(found[:-1].min()) < 0.7 and 1.2 < float(found[:-1].max()) < 1.21
    assert float(found[-1]) == pytest.approx(1e-9 * 3.4445**5)
