"""Small families and rules with known answers for the tests of the evaluation."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meta_teleport.params import Params
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Split, TaskFamily, Tasks, split_generator


@dataclass(frozen=True)
class QuadraticTasks(Tasks):
    """``L = 0.5 a |x|^2 + c``: under gradient descent x_t = (1 - lr a)^t x_0."""

    keeps_loss: bool = True
    constant: float = 0.0

    @property
    def symmetry(self) -> Symmetry:
        return Symmetry((), keeps_loss=self.keeps_loss)

    def inputs(self, step: Tensor) -> LayerInput:
        return LayerInput(self.params["x"].new_ones(self.count, 1, 1))

    def outputs(self, params: Params, step: Tensor) -> Tensor:
        return params["x"]

    def loss(self, params: Params, step: Tensor) -> Tensor:
        return 0.5 * self.data["a"] * params["x"].square().sum(1) + self.constant


class Quadratic(TaskFamily):
    """Quadratics of curvature ``a`` in three dimensions."""

    def __init__(self, a: float = 2.0) -> None:
        self.a = a

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> QuadraticTasks:
        x = torch.randn(count, 3, generator=split_generator(generator, split), dtype=torch.float64)
        return QuadraticTasks({"x": x.to(device, dtype)}, {"a": torch.full((count,), self.a).to(device, dtype)})


class Turning(Rule):
    """Gradient descent with a fixed rotation by about 0.5 at every site, for sites of rotations of the plane."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.lr = lr

    def init(self, params: Params, symmetry: Symmetry) -> tuple[()]:
        return ()

    def forward(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
        turn = observation.loss.new_tensor([[0.0, -0.5], [0.5, 0.0]]).expand(len(observation.loss), 2, 2)
        return Proposal({name: -self.lr * g for name, g in observation.gradients.items()}, (turn,)), state


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
