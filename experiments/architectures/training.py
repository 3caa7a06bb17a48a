"""Optimizers on one architecture, with and without teleports along the exact sites that detection finds.

    none                        the plain optimizer
    teleport, start             before the first step
    teleport, every k epochs    at the start of every k-th epoch, the first one included
    random, start or every k    as far along the same sites, in a random direction per run
    reset, every k epochs       nothing moves, the state of the optimizer begins anew

A teleport raises the gradient norm on one batch; the optimizer's state moves along, also with random elements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.lab.image_teleports import climb, of_gradient_norm, randomized, stay
from experiments.lab.image_training import BeforeStep, Plan, train
from experiments.lab.teleport_log import TeleportLog
from meta_teleport.optimizers.ensemble import Ensemble, Search
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.images import Images

Build = Callable[[], nn.Module]

PLAIN, TUNING = "none", "tuning"
SEARCH = climb(of_gradient_norm, steps=10, size=0.1)


@dataclass(frozen=True)
class Case:
    """One network on one data set, its sites with a Lie algebra, and the folder of its progress."""

    name: str
    build: Build
    images: Images
    symmetry: Symmetry
    folder: Path


@dataclass(frozen=True)
class Variant:
    """A search at epoch 0, or, with ``every``, at the epochs 0, k, 2k, ...; ``state`` says what becomes of the
    optimizer's."""

    name: str
    search: Callable[[int], Search] | None = None
    every: int | None = None
    state: str = "transport"

    def due(self, epoch: int) -> bool:
        """Does something happen at the start of this epoch?"""
        return self.search is not None and (epoch == 0 or (self.every is not None and epoch % self.every == 0))


@dataclass(frozen=True)
class Entry:
    """One optimizer in one variant at one step size."""

    method: str
    variant: Variant
    optimizer: Any
    lr: float

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.method} | {self.variant.name} | {self.lr:g}"


@dataclass(frozen=True)
class Method:
    """An optimizer and the step sizes that it is tuned over."""

    name: str
    optimizer: Any
    grid: tuple[float, ...]


class Outcome(NamedTuple):
    """``last``: training and test loss and test accuracy at the end, and the mean training loss of the batches of the
    first epoch, ``(entries, seeds)`` each; the seconds of the training, and what the teleports did."""

    last: dict[str, Tensor]
    seconds: float
    log: TeleportLog


def variants(every: int) -> tuple[Variant, ...]:
    """All of them, the plain one first."""
    regularly = "every epoch" if every == 1 else f"every {every} epochs"
    return (
        Variant(PLAIN),
        Variant("teleport, start", lambda epoch: SEARCH),
        Variant(f"teleport, {regularly}", lambda epoch: SEARCH, every),
        Variant("random, start", partial(randomized, SEARCH)),
        Variant(f"random, {regularly}", partial(randomized, SEARCH), every),
        Variant(f"reset, {regularly}", lambda epoch: stay, every, "reset"),
    )


def entries_of(methods: Sequence[Method], every: int) -> list[Entry]:
    """Every method in every variant, at the first step size of its grid. SGD has no state that could be reset."""
    return [
        Entry(method.name, variant, method.optimizer, method.grid[0])
        for method in methods
        for variant in variants(every)
        if not (method.name == "SGD" and variant.state == "reset")
    ]


def train_entries(
    case: Case, entries: Sequence[Entry], seeds: Sequence[int], plan: Plan, part: str, batch: int
) -> Outcome:
    """Trains every entry with every seed; teleports see ``batch`` images each. Where the ``part`` is tuning, the
    validation images stand in for the test images."""
    images, keep = case.images, case.folder / f"{part}.safetensors"
    settings = [partial(entry.optimizer, lr=entry.lr) for entry in entries]
    copies = Ensemble(case.build, seeds, settings, device=images.x_train.device)
    log = TeleportLog(keep.with_suffix(".json"), [entry.key for entry in entries])
    before = _teleports(copies, entries, case, batch, log)
    label = f"{images.name}, {case.name}, {part}"
    curves = train(copies, images, plan, label=label, keep=keep, before_step=before, validation=part == TUNING)
    losses = {"train": copies.evaluate(images.x_train, images.y_train)[0].cpu()}
    losses |= {"test": curves.test[-1], "accuracy": curves.accuracy[-1], "early": curves.train[1]}
    last = {name: values.view(len(entries), len(seeds)) for name, values in losses.items()}
    return Outcome(last, float(curves.seconds.sum()), log)


def _teleports(copies: Ensemble, entries: Sequence[Entry], case: Case, batch: int, log: TeleportLog) -> BeforeStep:
    images = case.images

    def before_step(epoch: int, step: int) -> None:
        due = [(number, entry) for number, entry in enumerate(entries) if step == 0 and entry.variant.due(epoch)]
        index = torch.arange(epoch * batch, (epoch + 1) * batch) % len(images.x_train)
        x, y = images.x_train[index], images.y_train[index]
        for number, entry in due:
            search = entry.variant.search(epoch)  # type: ignore[misc]
            log.add(entry.key, epoch, copies.teleport(number, case.symmetry, search, x, y, entry.variant.state))
        if due:
            log.save()

    return before_step


def tuned(
    entries: Sequence[Entry], methods: Sequence[Method], train_all: Callable[[list[Entry]], Tensor]
) -> tuple[list[Entry], list[dict[str, Any]]]:
    """Every entry at the step size of its method's grid with the lowest validation loss, and what was tried.
    ``train_all`` gives the losses ``(entries, seeds)``."""
    grids = {method.name: method.grid for method in methods}
    tried = [replace(entry, lr=lr) for entry in entries for lr in grids[entry.method]]
    rows = iter(train_all(tried).mean(1).nan_to_num(nan=torch.inf).tolist())
    best, table = [], []
    for entry in entries:
        grid = grids[entry.method]
        losses = [next(rows) for _ in grid]
        chosen = grid[losses.index(min(losses))]
        best.append(replace(entry, lr=chosen))
        table.append({"method": entry.method, "variant": entry.variant.name, "grid": grid, "losses": losses})
    return best, table
