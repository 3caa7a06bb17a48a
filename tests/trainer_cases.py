"""A network, both kinds of optimizer, and the loop that people write by hand, which trainers are held against."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from network_cases import RELU
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, TensorDataset

import meta_teleport as mt

ACCUMULATED, CLIPPED = 2, 0.5


class Net(nn.Sequential):
    """A network that returns its loss."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (super().forward(x) - labels).square().mean()}


def build(seed: int = 0) -> Net:
    return Net(*RELU.build(seed))


def batches() -> DataLoader[Any]:
    """Sixteen batches of two, always in the same order."""
    (x, y), (u, v) = RELU.batch(0), RELU.batch(1)
    return DataLoader(TensorDataset(torch.cat([x, u]), torch.cat([y, v])), 2)


def teleported(model: nn.Module, symmetry: mt.Symmetry = RELU.symmetry) -> Optimizer:
    base = AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    return mt.TeleportedOptimizer(base, model, symmetry, "random", [1, 3], generator=generator)


def learned(model: nn.Module, symmetry: mt.Symmetry = RELU.symmetry) -> Optimizer:
    return mt.load("factors").optimizer(model, symmetry=symmetry)


OPTIMIZERS: dict[str, Callable[..., Any]] = {"teleported": teleported, "learned": learned}


def scheduler(optimizer: Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: 1 / (1 + step))


def by_hand(
    model: nn.Module, optimizer: Any, inputs: Iterable[Callable[[], Tensor]], accumulated: int = ACCUMULATED
) -> None:
    """The plain loop, over the loss of one micro-batch after the other."""
    schedule, losses = scheduler(optimizer), []
    for index, evaluate in enumerate(inputs, 1):
        losses.append(evaluate())
        losses[-1].backward()
        if index % accumulated == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPED)
            total = torch.stack(losses).sum()
            if isinstance(optimizer, mt.TeleportedOptimizer):
                optimizer.step()
            else:
                optimizer.step(total)
            optimizer.report(loss=total)
            schedule.step()
            optimizer.zero_grad()
            losses = []


def micro_batches(
    model: nn.Module, steps: int, accumulated: int = ACCUMULATED, epoch: int | None = None
) -> list[Callable[[], Tensor]]:
    """The losses of the first ``steps`` steps, each a share of the mean; ``epoch``: batches until they come again."""
    known = list(batches())[:epoch]
    chosen = [known[i % len(known)] for i in range(steps * accumulated)]
    return [lambda batch=batch: model(*batch)["loss"] / accumulated for batch in chosen]
