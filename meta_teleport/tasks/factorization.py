"""Low-rank factorisation: a rank-r map ``B A`` learned from examples ``y = M x`` with anisotropic inputs.

The loss of a mini-batch of inputs x is ``0.5 mean |B A x - y|^2``. Every ``B g^-1, g A`` with g in GL(r) gives the same
product for every input, so that the factors of an ill-conditioned M can be kept in good shape by teleports alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from meta_teleport.activations import activation
from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.symmetry.groups import GL
from meta_teleport.symmetry.site import Layer, LayerInput, Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View
from meta_teleport.tasks.family import Split, TaskFamily, Tasks, mini_batch, split_generator


@dataclass(frozen=True)
class FactorizationTasks(Tasks):
    """Problems with parameters ``A`` (tasks, r, d) and ``B`` (tasks, m, r), and data ``inputs`` (tasks, points, d),
    ``labels`` (tasks, points, m), ``target`` M (tasks, m, d) and ``root`` (tasks, d, d), the square root of the inputs'
    covariance."""

    batch: int | None = None

    @property
    def symmetry(self) -> Symmetry:
        a, b = self.params["A"], self.params["B"]
        site = Site("rank", GL(a.shape[-2]), (View.along("A", a.shape[1:], 0),), (View.along("B", b.shape[1:], 1),))
        return Symmetry((site,), (Layer("A", None, activation("identity")),))

    def inputs(self, step: Tensor) -> LayerInput:
        return LayerInput(mini_batch(self.data["inputs"], step, self.batch).mT)

    def outputs(self, params: Params, step: Tensor) -> Tensor:
        return mini_batch(self.data["inputs"], step, self.batch) @ params["A"].mT @ params["B"].mT

    def loss(self, params: Params, step: Tensor) -> Tensor:
        residual = self.outputs(params, step) - mini_batch(self.data["labels"], step, self.batch)
        return 0.5 * residual.square().sum((-2, -1)) / (self.batch or 1)

    def relative_error(self, params: Params) -> Tensor:
        """The expected squared error on fresh noiseless inputs over that of the zero map,

            ||(B A - M) C^(1/2)||_F^2 / ||M C^(1/2)||_F^2,

        C the covariance of the inputs; shape ``(tasks,)``.
        """
        target, root = self.data["target"], self.data["root"]
        error = (params["B"] @ params["A"] - target) @ root
        return error.square().sum((-2, -1)) / (target @ root).square().sum((-2, -1))


class Factorization(TaskFamily):
    """Random targets of one rank and condition number, with random inputs of one anisotropy.

    M has random singular vectors and r singular values in geometric progression, scaled so that labels have variance 1
    on average. Inputs are ``N(0, C)``, C with random eigenvectors, eigenvalues in geometric progression and mean 1. The
    factors start at ``A ~ N(0, 1 / d)``, ``B ~ N(0, 1 / r)``.

    Args:
        rank: r, of the target and of the factors.
        inputs: Input dimension d.
        outputs: Output dimension m.
        condition: Largest over smallest non-zero singular value of M.
        anisotropy: Largest over smallest eigenvalue of C.
        points: Examples per problem.
        batch: Examples per step. None: no sampling at all, the exact expectation ``0.5 ||(B A - M) C^(1/2)||_F^2`` at
            every step (with anisotropy 1: plain matrix factorisation); ``points`` then has no meaning.
        noise: Standard deviation of Gaussian noise added to the labels, in units of the labels.
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
    ) -> None:
        if not 1 <= rank <= min(inputs, outputs):
            raise UserError(f"rank {rank} does not fit {outputs} x {inputs}: choose 1 to {min(inputs, outputs)}")
        if not (condition >= 1 and anisotropy >= 1):
            raise UserError(f"condition {condition} and anisotropy {anisotropy} must both be at least 1")
        if batch is not None and not 1 <= batch <= points:
            raise UserError(f"batch {batch} does not fit {points} points: choose 1 to {points}")
        if noise < 0 or (noise and batch is None):
            raise UserError(f"noise {noise} is not possible here: give noise >= 0, and a batch with noise above 0")
        self.rank, self.condition, self.anisotropy = rank, condition, anisotropy
        self.d, self.m, self.points, self.batch, self.noise = inputs, outputs, points, batch, noise

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

        r, d, m = self.rank, self.d, self.m
        params = {"A": normal(r, d) / d**0.5, "B": normal(m, r) / r**0.5}
        eigenvectors, eigenvalues = _orthonormal(normal(d, d)), _geometric(self.anisotropy, d)
        root = eigenvectors * (eigenvalues / eigenvalues.mean()).sqrt() @ eigenvectors.mT
        target = _orthonormal(normal(m, r)) * _geometric(self.condition, r) @ _orthonormal(normal(d, r)).mT
        target = target * m**0.5 / torch.linalg.matrix_norm(target @ root, keepdim=True)
        inputs = root if self.batch is None else normal(self.points, d) @ root
        labels = inputs @ target.mT
        if self.noise:
            labels = labels + self.noise * normal(self.points, m)
        data = {"inputs": inputs, "labels": labels, "target": target, "root": root}
        return FactorizationTasks(
            {name: tensor.to(device, dtype) for name, tensor in params.items()},
            {name: tensor.to(device, dtype) for name, tensor in data.items()},
            self.batch,
        )


def _orthonormal(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns."""
    return torch.linalg.qr(matrix).Q


def _geometric(ratio: float, count: int) -> Tensor:
    """``count`` numbers in geometric progression from 1 down to ``1 / ratio``."""
    return ratio ** -torch.linspace(0, 1, count, dtype=torch.float64)
