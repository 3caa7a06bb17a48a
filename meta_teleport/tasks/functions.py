"""Two-dimensional test functions ``L(x) = ||h(x)||^2`` with h invertible, and their symmetry.

Rotations act on the level sets: ``x -> h^-1(R h(x))`` with R in SO(2) leaves L unchanged (Zhao et al. 2022,
section 4.1). Minimum 0 where h(x) = 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.symmetry.conjugate import ConjugateSite, PlaneSymmetry
from meta_teleport.symmetry.groups import Orthogonal
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.tasks.family import Split, TaskFamily, Tasks, split_generator

Map = Callable[[Tensor, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class PlaneFunction:
    """``h`` and its inverse on points ``(tasks, 2)``, and the half-width of the square that starts are drawn from."""

    h: Map
    h_inverse: Map
    spread: float


def _ellipse(x: Tensor, data: dict[str, Tensor]) -> Tensor:
    return torch.stack([x[:, 0], data["stretch"] * x[:, 1]], 1)


def _ellipse_inverse(u: Tensor, data: dict[str, Tensor]) -> Tensor:
    return torch.stack([u[:, 0], u[:, 1] / data["stretch"]], 1)


def _rosenbrock(x: Tensor, data: dict[str, Tensor]) -> Tensor:
    return torch.stack([10 * (x[:, 1] - x[:, 0] ** 2), 1 - x[:, 0]], 1)


def _rosenbrock_inverse(u: Tensor, data: dict[str, Tensor]) -> Tensor:
    first = 1 - u[:, 1]
    return torch.stack([first, u[:, 0] / 10 + first**2], 1)


def _booth(x: Tensor, data: dict[str, Tensor]) -> Tensor:
    return torch.stack([x[:, 0] + 2 * x[:, 1] - 7, 2 * x[:, 0] + x[:, 1] - 5], 1)


def _booth_inverse(u: Tensor, data: dict[str, Tensor]) -> Tensor:
    a, b = u[:, 0] + 7, u[:, 1] + 5
    return torch.stack([(2 * b - a) / 3, (2 * a - b) / 3], 1)


def _random(x: Tensor, data: dict[str, Tensor]) -> Tensor:
    z = (data["a"] @ x.unsqueeze(-1)).squeeze(-1) + data["b"]
    return (data["c"] @ torch.asinh(z).unsqueeze(-1)).squeeze(-1)


def _random_inverse(u: Tensor, data: dict[str, Tensor]) -> Tensor:
    z = torch.sinh(torch.linalg.solve(data["c"], u.unsqueeze(-1)).squeeze(-1))
    return torch.linalg.solve(data["a"], (z - data["b"]).unsqueeze(-1)).squeeze(-1)


FUNCTIONS = {
    "ellipse": PlaneFunction(_ellipse, _ellipse_inverse, 2.0),
    "rosenbrock": PlaneFunction(_rosenbrock, _rosenbrock_inverse, 2.0),
    "booth": PlaneFunction(_booth, _booth_inverse, 10.0),
    "random": PlaneFunction(_random, _random_inverse, 2.0),
}


@dataclass(frozen=True)
class FunctionTasks(Tasks):
    """Problems of one test function; the output of such a network is the number ``||h(x)||^2``."""

    function: PlaneFunction

    @property
    def symmetry(self) -> PlaneSymmetry:
        site = ConjugateSite(
            "plane",
            Orthogonal(2),
            (),
            (),
            lambda x: self.function.h(x, self.data),
            lambda u: self.function.h_inverse(u, self.data),
        )
        return PlaneSymmetry((site,))

    def inputs(self, step: Tensor) -> LayerInput:
        return LayerInput(self.params["x"].new_ones(self.count, 1, 1))

    def outputs(self, params: Params, step: Tensor) -> Tensor:
        return self.function.h(params["x"], self.data).square().sum(-1, keepdim=True)

    def loss(self, params: Params, step: Tensor) -> Tensor:
        return self.outputs(params, step).squeeze(-1)


class Functions(TaskFamily):
    """Random starts, and for two of them random members, of one two-dimensional test function.

    Args:
        function: ellipse (x^2 + s^2 y^2, s log-uniform in [1, 10]), rosenbrock, booth, or random
            (h(x) = C asinh(A x + b), A and C random with condition number at most 10).
    """

    def __init__(self, function: str = "rosenbrock") -> None:
        if function not in FUNCTIONS:
            raise UserError(f"unknown function '{function}': choose one of {', '.join(FUNCTIONS)}")
        self.function = FUNCTIONS[function]

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> FunctionTasks:
        child = split_generator(generator, split)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=child, dtype=torch.float64)

        def matrix() -> Tensor:
            u, _, v = torch.linalg.svd(torch.randn(count, 2, 2, generator=child, dtype=torch.float64))
            return u @ torch.diag_embed(10 ** (uniform(2) - 0.5)) @ v

        params = {"x": self.function.spread * (2 * uniform(2) - 1)}
        data = {"stretch": 10 ** uniform(), "a": matrix(), "b": 2 * uniform(2) - 1, "c": matrix()}
        return FunctionTasks(
            {name: tensor.to(device, dtype) for name, tensor in params.items()},
            {name: tensor.to(device, dtype) for name, tensor in data.items()},
            self.function,
        )
