"""Training many copies of a network on images, resumable, with a bar: the loop that all image experiments share."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.lab.progress import Stopped, kept_tensors
from meta_teleport.cli.terminal import counting_bar, stopping
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.runs.checkpoint import save_tensors
from meta_teleport.tasks.images import Images, Order, order

SAVE_EVERY_S = 5.0
SHOW_EVERY = 50

BeforeStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """How to train: epochs (from ``first`` on), images per step, and the order of the images."""

    epochs: int
    batch: int = 20
    order: Order = "shared"
    first: int = 0


class Curves(NamedTuple):
    """Per epoch and copy ``(epochs + 1, copies)``, the start included: the mean training loss of the epoch's batches
    (at the start: of the first images), test loss and test accuracy; and the seconds that each epoch took for all
    copies together, evaluation left out, ``(epochs + 1,)``."""

    train: Tensor
    test: Tensor
    accuracy: Tensor
    seconds: Tensor


def train(
    copies: Ensemble,
    images: Images,
    plan: Plan,
    *,
    label: str = "",
    keep: Path | None = None,
    before_step: BeforeStep | None = None,
    validation: bool = False,
) -> Curves:
    """Trains all copies. ``before_step(epoch, step)`` is where teleports happen. With ``keep``, progress is saved into
    that file and taken up from there; Ctrl-C stops at the end of an epoch. ``validation`` evaluates on the validation
    images in place of the test images.

    Raises ``Stopped`` on Ctrl-C, and ``UserError`` for a file that belongs to another run.
    """
    x, y = (images.x_validation, images.y_validation) if validation else (images.x_test, images.y_test)
    key = _key(copies, images, plan, validation)
    begin, rows = _resumed(copies, plan, keep, key)
    if not rows:
        start = copies.evaluate(images.x_train[: len(x)], images.y_train[: len(x)])[0]
        rows = [(start, *copies.evaluate(x, y), torch.zeros(()))]
    steps = len(images.x_train) // plan.batch
    saved = time.perf_counter()
    with stopping() as stop, counting_bar(plan.epochs * steps, (begin - plan.first) * steps) as show:
        for epoch in range(begin, plan.first + plan.epochs):
            began, total = time.perf_counter(), torch.zeros(copies.count, device=x.device)
            drawn = order(plan.order, len(images.x_train), plan.batch, epoch, copies.seeds).to(x.device)
            for step, index in enumerate(drawn):
                if before_step is not None:
                    before_step(epoch, step)
                total += copies.step(images.x_train[index], images.y_train[index])
                if step % SHOW_EVERY == 0:
                    show((epoch - plan.first) * steps + step, f"{label} epoch {epoch + 1}" + " (stopping)" * stop())
            seconds = torch.tensor(time.perf_counter() - began)
            rows.append((total / len(drawn), *copies.evaluate(x, y), seconds))
            last = epoch + 1 == plan.first + plan.epochs
            if keep and (time.perf_counter() - saved > SAVE_EVERY_S or stop() or last):
                _save(copies, keep, {**key, "epoch": epoch + 1}, rows)
                saved = time.perf_counter()
            if stop() and not last:
                raise Stopped(f"{label}: stopped after epoch {epoch + 1}; the same command goes on from there")
    return Curves(*(torch.stack(column).cpu() for column in zip(*rows, strict=True)))


def _key(copies: Ensemble, images: Images, plan: Plan, validation: bool) -> dict[str, Any]:
    """What a file of progress must agree on with the run that takes it up."""
    optimizers = [setting.optimizer for setting in copies.settings]
    return {
        "data": [images.name, validation, *images.x_train.shape],
        "plan": repr(plan),
        "network": {name: list(p.shape[1:]) for name, p in copies.params.items()},
        "seeds": list(copies.seeds),
        "settings": [f"{type(optimizer).__name__} {optimizer.defaults}" for optimizer in optimizers],
    }


def _save(copies: Ensemble, keep: Path, meta: dict[str, Any], rows: list[tuple[Tensor, ...]]) -> None:
    curves = {f"curves.{i}": torch.stack(column) for i, column in enumerate(zip(*rows, strict=True))}
    keep.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(keep, {**copies.state(), **curves}, meta)


def _resumed(
    copies: Ensemble, plan: Plan, keep: Path | None, key: dict[str, Any]
) -> tuple[int, list[tuple[Tensor, ...]]]:
    found = None if keep is None else kept_tensors(keep, key, next(iter(copies.params.values())).device)
    if found is None:
        return plan.first, []
    tensors, meta = found
    copies.restore(tensors)
    columns = (tensors[f"curves.{i}"].unbind() for i in range(len(Curves._fields)))
    return int(meta["epoch"]), list(zip(*columns, strict=True))
