"""The rules that come with the package, 20 steps on three networks: weights, data and initial values by formulas."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pinned.store import Values
from torch import Tensor, nn
from torch.nn import functional as F
from waves import placed, wave

import meta_teleport as mt
from meta_teleport.optimizers.learned_optimizer import LearnedOptimizer

STEPS = 20
RULES = ("factors", "classification")


class Tokens(nn.Module):
    """Patches of an image by a convolution, ReLU, another, self-attention with two heads of width 3, a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 5, 2, stride=2), nn.Conv2d(5, 6, 1)
        self.query, self.key, self.value, self.out = (nn.Linear(6, 6, bias=False) for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:  # (n, 1, 6, 6)
        h = self.second(F.relu(self.first(x))).flatten(2).mT  # (n, 9, 6)
        q, k, v = (f(h).unflatten(-1, (2, 3)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = ((q @ k.mT / 3**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head((h + self.out(mixed)).mean(1))


def bottleneck() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 3, bias=False), nn.Linear(3, 7, bias=False))


def classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3))


def squares(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).square().mean()


@dataclass(frozen=True)
class Problem:
    """A network, its loss of outputs and labels, its inputs and labels."""

    build: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor
    labels: Tensor

    def model(self) -> nn.Module:
        """In float64, at weights by formulas."""
        return placed(self.build().double(), 3, 1.2)


TEACHER = wave(12, 7, seed=5) @ wave(7, 7, seed=6) / 7
THREE = torch.arange(12) % 3
PROBLEMS = {
    "bottleneck": Problem(bottleneck, squares, wave(12, 10, seed=4), TEACHER),
    "classifier": Problem(classifier, F.cross_entropy, wave(12, 8, seed=7), THREE),
    "tokens": Problem(Tokens, F.cross_entropy, wave(12, 1, 6, 6, seed=8), THREE),
}


def trained(name: str, problem: Problem, **settings: float) -> tuple[Tensor, LearnedOptimizer]:
    """The losses before and after every step, and the optimizer."""
    model = problem.model()
    optimizer = mt.load(name).double().optimizer(model, problem.inputs, **settings)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss(model(problem.inputs), problem.labels)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).detach() for _ in range(STEPS)]
    return torch.stack([*losses, problem.loss(model(problem.inputs), problem.labels).detach()]), optimizer


def steps_of(name: str) -> Values:
    """Losses, some weights, and how many teleports were undone, by network."""
    found: Values = {}
    for key, problem in PROBLEMS.items():
        losses, optimizer = trained(name, problem)
        parameters = list(optimizer.model.parameters())
        found[f"{key}: losses"] = losses
        found[f"{key}: first weights"] = parameters[0].detach().flatten()[:12]
        found[f"{key}: last weights"] = parameters[-1].detach().flatten()[:12]
        found[f"{key}: undone"] = optimizer.rejected
    return found
