"""A family as a user writes one: a torch model, the symmetry that was found of it, a loss of one's own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import meta_teleport as mt
from meta_teleport.params import Params, functional
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Split, TaskFamily, Tasks, split_generator

MODEL = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
FOUND = mt.find_symmetries(MODEL, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
"""Scalings and permutations of the four hidden units."""


@dataclass(frozen=True)
class OwnTasks(Tasks):
    """Regression of ``MODEL``; ``shown`` is applied to the losses."""

    shown: Callable[[Tensor], Tensor]

    @property
    def symmetry(self) -> Symmetry:
        return FOUND

    def inputs(self, step: Tensor) -> LayerInput:
        return LayerInput(self.data["x"].mT)

    def outputs(self, params: Params, step: Tensor) -> Tensor:
        read = {name: p for name, p in params.items() if name != "unread"}
        return functional(MODEL)(read, self.data["x"])

    def loss(self, params: Params, step: Tensor) -> Tensor:
        return self.shown((self.outputs(params, step) - self.data["y"]).square().mean((1, 2)))


class Own(TaskFamily):
    """Six points each. ``unread``: one more parameter, that the loss does not depend on."""

    def __init__(self, unread: bool = False, shown: Callable[[Tensor], Tensor] = lambda losses: losses) -> None:
        self.unread, self.shown = unread, shown

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> OwnTasks:
        inner = split_generator(generator, split)

        def draw(*shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=inner, dtype=torch.float64).to(device, dtype)

        params = {name: draw(*p.shape) / 2 for name, p in MODEL.named_parameters()}
        if self.unread:
            params["unread"] = draw(3)
        return OwnTasks(params, {"x": draw(6, 3), "y": draw(6, 2)}, self.shown)
