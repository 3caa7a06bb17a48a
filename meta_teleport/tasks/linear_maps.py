"""Linear maps ``y = M x`` learned from examples: what is drawn, the loss of a mini-batch, and the error of a map.

How a problem's parameters make up the map is for its family to say: two factors (``factorization``) or a stack of
layers (``linear``).
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.tasks.family import Tasks, mini_batch


@dataclass(frozen=True)
class LinearMapTasks(Tasks):
    """Problems whose model is a linear map; see :meth:`LinearMaps.draw` for their data."""

    batch: int | None = None

    @abstractmethod
    def matrix(self, params: Params) -> Tensor:
        """The map F of the model, ``(tasks, m, d)``."""

    def inputs(self, step: Tensor) -> LayerInput:
        return LayerInput(self.rows("inputs", step).mT)

    def loss(self, params: Params, step: Tensor) -> Tensor:
        """``0.5 mean_x |o (f(x) - y)|^2``, the mean over the examples of the step (batch None: the sum over the rows of
        ``C^(1/2)``); ``o^2`` is ``observed``, or 1 where nothing is missing."""
        squares = (self.outputs(params, step) - self.rows("labels", step)).square()
        if "observed" in self.data:
            squares = self.rows("observed", step) * squares
        return 0.5 * squares.sum((-2, -1)) / (self.batch or 1)

    def rows(self, name: str, step: Tensor) -> Tensor:
        """The part of the data ``name`` that each task sees at its own ``step``."""
        return mini_batch(self.data[name], step, self.batch)

    def error(self, params: Params, step: Tensor) -> Tensor:
        return self.relative_error(params)

    def relative_error(self, params: Params) -> Tensor:
        """The expected squared error on fresh noiseless inputs over that of the zero map,

            ||(F - M) C^(1/2)||_F^2 / ||M C^(1/2)||_F^2,

        F the map of the model, C the covariance of the inputs; shape ``(tasks,)``.
        """
        target, root = self.data["target"], self.data["root"]
        error = (self.matrix(params) - target) @ root
        return error.square().sum((-2, -1)) / (target @ root).square().sum((-2, -1))


LARGEST = 2**22
"""Numbers in a map: 32 MB in float64."""


@dataclass(frozen=True)
class LinearMaps:
    """Random maps of one rank and condition number, and examples of them.

    M ``(m, d)`` has random singular vectors and r singular values in geometric progression, scaled so that labels have
    variance 1 on average. Inputs are ``N(0, C)``, C with random eigenvectors, eigenvalues in geometric progression and
    mean 1.

    Raises ``UserError`` for settings that do not fit each other.
    """

    rank: int
    inputs: int
    outputs: int
    condition: float
    anisotropy: float
    points: int
    batch: int | None
    noise: float
    missing: float

    def __post_init__(self) -> None:
        largest = min(self.inputs, self.outputs)
        if self.inputs * self.outputs > LARGEST:
            raise UserError(f"a map of {self.outputs} x {self.inputs} is too large: give {LARGEST:,} numbers at most")
        if not 1 <= self.rank <= largest:
            raise UserError(f"rank {self.rank} does not fit {self.outputs} x {self.inputs}: choose 1 to {largest}")
        if not (self.condition >= 1 and self.anisotropy >= 1):
            raise UserError(f"condition {self.condition} and anisotropy {self.anisotropy} must both be at least 1")
        if self.batch is not None and not 1 <= self.batch <= self.points:
            raise UserError(f"batch {self.batch} does not fit {self.points} points: choose 1 to {self.points}")
        if not self.noise >= 0 or (self.noise and self.batch is None):
            raise UserError(f"noise {self.noise} is not possible here: give noise >= 0, and a batch with noise above 0")
        if not 0 <= self.missing < 1:
            raise UserError(f"missing {self.missing} is no fraction of the labels: choose 0 or more, and less than 1")

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The data of ``count`` problems, in float64.

        ``inputs`` (count, points, d) and ``labels`` (count, points, m); ``target`` M (count, m, d); ``root`` (count, d,
        d), the square root of C. Without a batch the rows of ``root`` stand for the inputs, so that the loss is the
        exact expectation ``0.5 ||(F - M) C^(1/2)||_F^2``.

        Where labels are missing, ``observed`` (count, points, m) is ``1 / (1 - missing)`` for those that are observed
        and 0, as these labels are, for the others: over the choice, the loss has the expectation of the full one.
        """

        def normal(*shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

        r, d, m = self.rank, self.inputs, self.outputs
        eigenvectors, eigenvalues = _orthonormal(normal(d, d)), _geometric(self.anisotropy, d)
        root = eigenvectors * (eigenvalues / eigenvalues.mean()).sqrt() @ eigenvectors.mT
        target = _orthonormal(normal(m, r)) * _geometric(self.condition, r) @ _orthonormal(normal(d, r)).mT
        target = target * m**0.5 / torch.linalg.matrix_norm(target @ root, keepdim=True)
        inputs = root if self.batch is None else normal(self.points, d) @ root
        labels = inputs @ target.mT
        if self.noise:
            labels = labels + self.noise * normal(self.points, m)
        data = {"inputs": inputs, "labels": labels, "target": target, "root": root}
        if self.missing:
            seen = torch.rand(labels.shape, generator=generator, dtype=torch.float64) >= self.missing
            data |= {"labels": labels * seen, "observed": seen.double() / (1 - self.missing)}
        return data


def _orthonormal(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns."""
    return torch.linalg.qr(matrix).Q


def _geometric(ratio: float, count: int) -> Tensor:
    """``count`` numbers in geometric progression from 1 down to ``1 / ratio``."""
    return ratio ** -torch.linspace(0, 1, count, dtype=torch.float64)
