"""Random algebra coordinates as large as others."""

import torch

from meta_teleport.symmetry.random_algebra import random_algebra


def test_random_algebra_keeps_every_norm(generator: torch.Generator) -> None:
    like = (torch.randn(4, 3, 3, generator=generator), torch.randn(4, 5, generator=generator, dtype=torch.float64))
    drawn = random_algebra(like, generator)
    assert len(drawn) == 2
    for a, b in zip(drawn, like, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and not torch.equal(a, b)
        assert torch.allclose(a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1), rtol=1e-6)
    zero = random_algebra((torch.zeros(2, 3, 3),), generator)
    assert torch.equal(zero[0], torch.zeros(2, 3, 3))
