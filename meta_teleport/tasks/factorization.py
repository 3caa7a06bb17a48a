"""Low-rank factorisation: a rank-r map ``B A`` learned from examples ``y = M x`` with anisotropic inputs.

The loss of a mini-batch of inputs x is ``0.5 mean |B A x - y|^2``. Every ``B g^-1, g A`` with g in GL(r) gives the same
product for every input, so that the factors of an ill-conditioned M can be kept in good shape by teleports alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from meta_teleport.activations import activation
from meta_teleport.params import Params
from meta_teleport.symmetry.groups import GL
from meta_teleport.symmetry.site import Layer, Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.tasks.family import Split, TaskFamily, split_generator
from meta_teleport.tasks.linear_maps import LinearMaps, LinearMapTasks


@dataclass(frozen=True)
class FactorizationTasks(LinearMapTasks):
    """Problems with parameters ``A`` (tasks, r, d) and ``B`` (tasks, m, r); see :class:`LinearMapTasks`."""

    @property
    def symmetry(self) -> Symmetry:
        a, b = self.params["A"], self.params["B"]
        site = Site("rank", GL(a.shape[-2]), (View.along("A", a.shape[1:], 0),), (View.along("B", b.shape[1:], 1),))
        return Symmetry((site,), (Layer("A", None, activation("identity")),))

    def matrix(self, params: Params) -> Tensor:
        return params["B"] @ params["A"]

    def outputs(self, params: Params, step: Tensor) -> Tensor:
        return self.rows("inputs", step) @ params["A"].mT @ params["B"].mT


class Factorization(TaskFamily):
    """Random targets of one rank and condition number, with random inputs of one anisotropy.

    See :class:`LinearMaps` for how they are drawn. The factors start at ``A ~ N(0, 1 / d)``, ``B ~ N(0, 1 / r)``.

    Args:
        rank: r, of the target and of the factors.
        inputs: Input dimension d.
        outputs: Output dimension m.
        condition: Largest over smallest non-zero singular value of M.
        anisotropy: Largest over smallest eigenvalue of C, the covariance of the inputs.
        points: Examples per problem.
        batch: Examples per step. None: no sampling at all, the exact expectation ``0.5 ||(B A - M) C^(1/2)||_F^2`` at
            every step (with anisotropy 1: plain matrix factorisation); ``points`` then has no meaning.
        noise: Standard deviation of Gaussian noise added to the labels, in units of the labels.
        missing: Fraction of the labels' entries that are never observed, a fixed random choice for every example. The
            loss is over the others, divided by ``1 - missing``, so that its expectation is that of the full loss;
            ``relative_error`` misses nothing. Without a batch the entries of ``M C^(1/2)`` take the labels' place (with
            anisotropy 1: plain matrix completion).
    """

    def __init__(
        self,
        rank: int = 8,
        inputs: int = 64,
        outputs: int = 64,
        condition: float = 100.0,
        anisotropy: float = 100.0,
        points: int = 2048,
        batch: int | None = 32,
        noise: float = 0.0,
        missing: float = 0.0,
    ) -> None:
        self.maps = LinearMaps(rank, inputs, outputs, condition, anisotropy, points, batch, noise, missing)

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> FactorizationTasks:
        child = split_generator(generator, split)

        def normal(*shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=child, dtype=torch.float64)

        r, d, m = self.maps.rank, self.maps.inputs, self.maps.outputs
        params: Params = {"A": normal(r, d) / d**0.5, "B": normal(m, r) / r**0.5}
        data = self.maps.draw(count, child)
        return FactorizationTasks(
            {name: tensor.to(device, dtype) for name, tensor in params.items()},
            {name: tensor.to(device, dtype) for name, tensor in data.items()},
            self.maps.batch,
        )
