"""Optimizers in several variants, trained side by side: what the comparisons of optimizers run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.lab.image_training import BeforeStep, Curves, Plan, train
from experiments.lab.teleport_log import TeleportLog
from experiments.optimizers.variants import PLAIN, Variant, variants
from meta_teleport.models import MLP
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.optimizers.stacked import Factory
from meta_teleport.tasks.images import Images

TUNING_SEEDS = (100, 101)
EARLY = 5
"""The epoch (or step) whose losses stand beside the last ones, as what teleports do may pass."""


@dataclass(frozen=True)
class Method:
    """An optimizer with its usual step size; it teleports in epoch ``epoch``, the published search by steps of
    ``size``."""

    name: str
    optimizer: Any
    lr: float
    epoch: int
    size: float
    apart: Callable[[Factory], Factory] | None = None

    def factory(self, lr: float) -> Factory:
        """What makes the optimizer."""
        made = partial(self.optimizer, lr=lr)
        return self.apart(made) if self.apart else made


@dataclass(frozen=True)
class Entry:
    """One method in one variant at one step size."""

    method: Method
    variant: str
    lr: float

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.method.name} | {self.variant} | {self.lr:g}"


@dataclass(frozen=True)
class Teleports:
    """One teleport before each of the first ``count`` steps of an epoch, each on ``batch`` images that follow those of
    the one before, by ``steps`` steps; along scalings these have length ``scaling_size``."""

    count: int = 8
    batch: int = 200
    steps: int = 10
    scaling_size: float = 0.03

    def ways(self, model: MLP, method: Method) -> dict[str, Variant]:
        """How a method teleports, by the name of the variant."""
        return variants(model, method.size, self.scaling_size, self.steps)


@dataclass(frozen=True)
class Bench:
    """What all entries share: the network, the images, and how they teleport."""

    build: Callable[[], MLP]
    images: Images
    teleports: Teleports

    def run(
        self, entries: Sequence[Entry], seeds: Sequence[int], plan: Plan, keep: Path, validation: bool = False
    ) -> tuple[Curves, TeleportLog]:
        """Trains every entry with every seed; progress in the file ``keep`` and, about teleports, one beside it."""
        factories = [entry.method.factory(entry.lr) for entry in entries]
        copies = Ensemble(self.build, seeds, factories, device=self.images.x_train.device)
        log = TeleportLog(keep.with_suffix(".json"), [entry.key for entry in entries])
        before_step = self._before_step(copies, entries, log)
        label = f"{self.images.name} {keep.stem}"
        curves = train(
            copies, self.images, plan, label=label, keep=keep, before_step=before_step, validation=validation
        )
        return curves, log

    def _before_step(self, copies: Ensemble, entries: Sequence[Entry], log: TeleportLog) -> BeforeStep:
        model, size, images = self.build(), self.teleports.batch, self.images
        ways = {method: self.teleports.ways(model, method) for method in {entry.method for entry in entries}}

        def before_step(epoch: int, step: int) -> None:
            due = [(i, e) for i, e in enumerate(entries) if e.method.epoch == epoch and e.variant != PLAIN]
            if step >= self.teleports.count or not due:
                return
            index = torch.arange(step * size, (step + 1) * size) % len(images.x_train)
            x, y = images.x_train[index], images.y_train[index]
            for number, entry in due:
                way = ways[entry.method][entry.variant]
                log.add(entry.key, step, copies.teleport(number, way.symmetry, way.search(step), x, y, way.state))
            log.save()

        return before_step

    def tune(
        self, entries: Sequence[Entry], grid: Sequence[float], plan: Plan, keep: Path
    ) -> tuple[list[Entry], list[dict[str, Any]]]:
        """The entries at the step sizes, of those in ``grid`` times their own, that end with the lowest mean loss
        on the validation images; and what was tried. A run that diverges is worse than any other."""
        tried = [replace(entry, lr=factor * entry.lr) for entry in entries for factor in grid]
        curves, _ = self.run(tried, TUNING_SEEDS, plan, keep, validation=True)
        losses = curves.test[-1].reshape(len(entries), len(grid), len(TUNING_SEEDS)).mean(2).nan_to_num(nan=torch.inf)
        best = [replace(e, lr=grid[int(row.argmin())] * e.lr) for e, row in zip(entries, losses, strict=True)]
        table = [
            {
                "method": e.method.name,
                "variant": e.variant,
                "lr": chosen.lr,
                "factors": list(grid),
                "at_the_edge": chosen.lr in (grid[0] * e.lr, grid[-1] * e.lr),
                "losses": [float(loss) if loss.isfinite() else None for loss in row],
            }
            for e, chosen, row in zip(entries, best, losses, strict=True)
        ]
        return best, table

    def compare(self, entries: Sequence[Entry], seeds: Sequence[int], plan: Plan, keep: Path) -> dict[str, Any]:
        """Every entry trained with every seed, as rows: the mean over the runs after every epoch, every run's early
        and last values, and what the teleports did."""
        curves, log = self.run(entries, seeds, plan, keep)
        rows = []
        for number, entry in enumerate(entries):
            own = slice(number * len(seeds), (number + 1) * len(seeds))
            columns = {"train": curves.train[:, own], "test": curves.test[:, own], "accuracy": curves.accuracy[:, own]}
            row = {"method": entry.method.name, "variant": entry.variant, "lr": entry.lr, "epoch": entry.method.epoch}
            row |= {"mean": {key: _numbers(column.mean(1)) for key, column in columns.items()}}
            row |= {"last": {key: _numbers(column[-1]) for key, column in columns.items()}}
            row |= {"early": {key: _numbers(column[min(EARLY, plan.epochs)]) for key, column in columns.items()}}
            rows.append({**row, "teleports": log.summary(entry.key)})
        return {
            "epochs": plan.epochs,
            "batch": plan.batch,
            "seconds": round(float(curves.seconds.sum()), 1),
            "rows": rows,
        }


def _numbers(values: torch.Tensor) -> list[float | None]:
    """To five digits; None for what is not finite, as JSON has no word for it."""
    return [float(f"{float(value):.5g}") if value.isfinite() else None for value in values]
