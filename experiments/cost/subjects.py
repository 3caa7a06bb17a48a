"""The networks that optimizer_cost.py trains, and what an iteration and a step of them are."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import meta_teleport as mt
from meta_teleport.optimizers.learned_optimizer import LearnedOptimizer
from meta_teleport.rules.rule import Rule
from meta_teleport.symmetry.symmetry import Symmetry

POINTS, CLASSES, RANK, LAYERS = 128, 10, 8, 4


class Adapted(nn.Module):
    """A frozen linear map and ``B A`` of low rank beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.a, self.b = nn.Linear(width, RANK, bias=False), nn.Linear(RANK, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.b(self.a(x))


def network(kind: str, width: int, inputs: int) -> tuple[nn.Module, Tensor]:
    """A network of one kind, and a batch."""
    if kind == "adapters":
        layers = [layer for _ in range(LAYERS) for layer in (Adapted(width), nn.ReLU())]
        return nn.Sequential(*layers[:-1]), torch.randn(POINTS, width)
    if kind == "linear":
        return nn.Sequential(nn.Linear(inputs, width), nn.Linear(width, CLASSES)), torch.randn(POINTS, inputs)
    hidden = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)]
    return nn.Sequential(*hidden), torch.randn(POINTS, inputs)


class Subject:
    """A network that an optimizer trains."""

    def __init__(self, kind: str, width: int, inputs: int, symmetry: Symmetry | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model, self.x = network(kind, width, inputs)
            self.y = torch.randint(CLASSES, (POINTS,))
        self.symmetry = mt.find_symmetries(self.model, self.x) if symmetry is None else symmetry

    @property
    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.trained)

    def loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.x), self.y)

    def ordinary(self, optimizer: Optimizer, step_alone: bool) -> Callable[[], object]:
        """What to call for an iteration, or a step, of a torch optimizer."""

        def iteration() -> None:
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()

        self.loss().backward()
        return optimizer.step if step_alone else iteration

    def learned(self, rule: Rule, step_alone: bool, times: int = 1) -> tuple[Callable[[], object], Callable[[], int]]:
        """The same of a rule, so many ``times`` per call, and how many of its teleports were undone."""
        optimizer = LearnedOptimizer(rule, self.model, self.symmetry, lr=1e-4, checked=False)
        value = self.loss()
        value.backward()
        known = value.detach()
        step = partial(optimizer.step, lambda: known)

        def run() -> None:
            for _ in range(times):
                step() if step_alone else optimizer.step(self.loss())

        return run, lambda: optimizer.rejected
