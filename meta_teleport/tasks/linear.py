"""Deep linear networks: a map ``W_L ... W_1`` learned from examples ``y = M x`` with anisotropic inputs.

Between consecutive layers every ``W_(i+1) g^-1, g W_i`` with g in GL(k) gives the same map, for every input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.models import DEEPEST, MLP
from meta_teleport.params import Params, functional
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Split, TaskFamily, split_generator
from meta_teleport.tasks.linear_maps import LinearMaps, LinearMapTasks
from meta_teleport.tasks.network import network


@dataclass(frozen=True, kw_only=True)
class DeepLinearTasks(LinearMapTasks):
    """Problems with parameters ``layers.0.weight`` (tasks, k, d) to ``layers.{depth - 1}.weight`` (tasks, m, k); see
    :class:`LinearMapTasks`."""

    model: MLP
    network_symmetry: Symmetry

    @property
    def symmetry(self) -> Symmetry:
        return self.network_symmetry

    def matrix(self, params: Params) -> Tensor:
        identity = torch.eye(self.model.widths[0]).to(self.data["root"])
        return functional(self.model)(params, identity).mT

    def outputs(self, params: Params, step: Tensor) -> Tensor:
        return functional(self.model)(params, self.rows("inputs", step))


class DeepLinear(TaskFamily):
    """Deep linear networks on random targets of one condition number, with random inputs of one anisotropy.

    See :class:`LinearMaps` for how they are drawn; the rank of the target is the smallest of inputs, width and outputs.
    Weights start at ``N(0, 1 / fan-in)``.

    Args:
        width: Units in every hidden layer.
        depth: Number of weight matrices, 2 or more.
        inputs: Input dimension d; the width if not given.
        outputs: Output dimension m; the width if not given.
        condition: Largest over smallest non-zero singular value of M.
        anisotropy: Largest over smallest eigenvalue of C, the covariance of the inputs.
        points: Examples per problem.
        batch: Examples per step. None: no sampling at all, the exact expectation ``0.5 ||(W_L ... W_1 - M)
            C^(1/2)||_F^2`` at every step; ``points`` then has no meaning.
        noise: Standard deviation of Gaussian noise added to the labels, in units of the labels.
        missing: Fraction of the labels' entries that are never observed, as in :class:`Factorization`.
    """

    def __init__(
        self,
        width: int = 16,
        depth: int = 3,
        inputs: int | None = None,
        outputs: int | None = None,
        condition: float = 10.0,
        anisotropy: float = 10.0,
        points: int = 1024,
        batch: int | None = 32,
        noise: float = 0.0,
        missing: float = 0.0,
    ) -> None:
        if not 2 <= depth < DEEPEST or width < 1:
            raise UserError(
                f"width {width} and depth {depth} do not make a network: width >= 1, depth from 2 to {DEEPEST - 1}"
            )
        d, m = width if inputs is None else inputs, width if outputs is None else outputs
        widths = [d, *[width] * (depth - 1), m]
        self.model, self.symmetry = network(widths, "identity", False, "linear", "gl", False, points, False)
        self.maps = LinearMaps(min(widths), d, m, condition, anisotropy, points, batch, noise, missing)

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> DeepLinearTasks:
        child = split_generator(generator, split)
        params = {
            name: torch.randn(count, *p.shape, generator=child, dtype=torch.float64) / p.shape[-1] ** 0.5
            for name, p in self.model.named_parameters()
        }
        data = self.maps.draw(count, child)
        return DeepLinearTasks(
            {name: tensor.to(device, dtype) for name, tensor in params.items()},
            {name: tensor.to(device, dtype) for name, tensor in data.items()},
            self.maps.batch,
            model=self.model,
            network_symmetry=self.symmetry,
        )
