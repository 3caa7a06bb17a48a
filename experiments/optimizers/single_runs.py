"""Optimizers that train one network at a time: those that look for steps along a line, or solve systems, on large
batches. Teleports come from :class:`meta_teleport.TeleportedOptimizer`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import LBFGS, Optimizer

import meta_teleport as mt
from experiments.lab.progress import kept
from experiments.optimizers.bench import EARLY, Bench, Entry
from experiments.optimizers.levenberg_marquardt import LevenbergMarquardt
from meta_teleport.models import MLP
from meta_teleport.optimizers.transport import reset_state
from meta_teleport.symmetry.mlp import mlp_symmetry

Batch = tuple[Tensor, Tensor]


def lbfgs(model: nn.Module, lr: float) -> Optimizer:
    """L-BFGS, 5 iterations per step with a line search (strong Wolfe)."""
    return LBFGS(model.parameters(), lr=lr, max_iter=5, history_size=10, line_search_fn="strong_wolfe")


def levenberg_marquardt(model: nn.Module, damping: float) -> Optimizer:
    """Levenberg-Marquardt; what is tuned is the damping at the start."""
    return LevenbergMarquardt(model, damping)


@dataclass(frozen=True)
class Single:
    """One run: an entry whose method's ``optimizer`` makes an optimizer of a model and a step size, with a seed."""

    bench: Bench
    entry: Entry
    seed: int
    batch: int
    steps: int
    validation: bool = False

    def result(self, folder: Path) -> dict[str, list[float]]:
        """Per step ``train`` (the loss on its batch), ``test`` and ``accuracy``, the start included; kept in a file."""
        kind = "validation" if self.validation else "test"
        path = folder / f"{self.entry.key} | seed {self.seed} | {self.batch} x {self.steps} | {kind}.json".replace(
            " ", ""
        )
        return kept(path, self._train, {})

    def _train(self) -> dict[str, list[float]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self.bench.build()
        model = model.to(self.bench.images.x_train.device)
        base = self.entry.method.optimizer(model, self.entry.lr)
        optimizer = self._teleported(model, base)
        found: dict[str, list[float]] = {"train": [], "test": [], "accuracy": []}
        for step in range(self.steps + 1):
            batch = self._batch(step, self.batch)
            self._measure(model, batch, found)
            if self.entry.variant == "state reset" and step < self.bench.teleports.count:
                reset_state(base, {p: n for n, p in model.named_parameters()}, mlp_symmetry(model, "scaling"))
            if step < self.steps:
                optimizer.step(_closure(model, base, batch))
        return found

    def _teleported(self, model: MLP, base: Optimizer) -> Optimizer:
        """The optimizer, with one teleport before each of its first steps where the variant has them."""
        at, moves = self.bench.teleports, self.entry.variant in ("scaling", "scaling, random")
        batches = iter(range(at.count))
        return mt.TeleportedOptimizer(
            base,
            model,
            mlp_symmetry(model, "scaling"),
            "random" if self.entry.variant == "scaling, random" else "gradient_norm",
            list(range(at.count)) if moves else [],
            loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
            batches=lambda: self._batch(next(batches), at.batch),
            state="transport" if isinstance(base, LBFGS) else "keep",
            steps=at.steps,
            size=at.scaling_size * (at.steps if self.entry.variant == "scaling, random" else 1),
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _batch(self, number: int, size: int) -> Batch:
        x, y = self.bench.images.x_train, self.bench.images.y_train
        index = torch.arange(number * size, number * size + min(size, len(x))) % len(x)
        return x[index], y[index]

    @torch.no_grad()
    def _measure(self, model: nn.Module, batch: Batch, found: dict[str, list[float]]) -> None:
        images = self.bench.images
        x, y = (images.x_validation, images.y_validation) if self.validation else (images.x_test, images.y_test)
        outputs = model(x)
        found["train"].append(float(F.cross_entropy(model(batch[0]), batch[1])))
        found["test"].append(float(F.cross_entropy(outputs, y)))
        found["accuracy"].append(float((outputs.argmax(1) == y).float().mean()))


def _closure(model: nn.Module, base: Optimizer, batch: Batch) -> Callable[[], Any]:
    if isinstance(base, LevenbergMarquardt):
        return lambda: batch

    def closure() -> Tensor:
        base.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


def row_of(entry: Entry, runs: list[dict[str, list[float]]]) -> dict[str, Any]:
    """A row as :meth:`bench.Bench.compare` gives it."""
    columns = {key: torch.tensor([run[key] for run in runs]) for key in ("train", "test", "accuracy")}
    return {
        "method": entry.method.name,
        "variant": entry.variant,
        "lr": entry.lr,
        "epoch": 0,
        "mean": {key: column.mean(0).tolist() for key, column in columns.items()},
        "early": {key: column[:, min(EARLY, column.shape[1] - 1)].tolist() for key, column in columns.items()},
        "last": {key: column[:, -1].tolist() for key, column in columns.items()},
        "teleports": None,
    }
