"""Meta-training of MAML's initial parameters: the outer loop, resumable, with a bar."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import torch

from experiments.lab.progress import Stopped, kept_tensors
from experiments.maml.runs import TELEPORTS, Runs, adapt, begun, tasks_of
from meta_teleport.cli.terminal import counting_bar, stopping
from meta_teleport.params import Params
from meta_teleport.runs.checkpoint import save_tensors
from meta_teleport.tasks.few_shot import FewShot, FewShotTasks

SAVE_EVERY = 100


@dataclass(frozen=True)
class Plan:
    """How to meta-train: teleports and step sizes of the runs, updates of the initial parameters and tasks per update,
    steps of the inner loop, and Adam's learning rate, which falls to zero as a cosine."""

    teleports: tuple[str, ...] = TELEPORTS
    rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    updates: int = 1000
    tasks: int = 8
    steps: int = 5
    outer_rate: float = 3e-3


def meta_train(families: Sequence[FewShot], plan: Plan, keep: Path, label: str) -> tuple[Runs, float]:
    """The runs of a plan after all their updates, each of the mean query loss after the inner loop on fresh training
    tasks, and the seconds of all updates. Progress is kept in a file and taken up from there.

    Raises ``Stopped`` on Ctrl-C, and ``UserError`` for a file that belongs to another plan.
    """
    runs = begun(families, plan.teleports, plan.rates)
    params = {name: p.requires_grad_() for name, p in runs.params.items()}
    adam = torch.optim.Adam(params.values(), lr=plan.outer_rate)
    done, before = _resumed(params, adam, plan, len(families), keep)
    began = time.perf_counter()
    with stopping() as stop, counting_bar(plan.updates, done) as show:
        for update in range(done, plan.updates):
            adam.param_groups[0]["lr"] = plan.outer_rate * 0.5 * (1 + cos(pi * update / plan.updates))
            _descend(runs, adam, tasks_of(families, plan.tasks, update, "train"), plan, update)
            last = update + 1 == plan.updates
            if last or stop() or (update + 1) % SAVE_EVERY == 0:
                _save(params, adam, plan, len(families), update + 1, before + time.perf_counter() - began, keep)
            if stop() and not last:
                raise Stopped(f"{label}: stopped after update {update + 1}; the same command goes on from there")
            show(update + 1, label)
    return runs, before + time.perf_counter() - began


def _descend(runs: Runs, adam: torch.optim.Adam, tasks: FewShotTasks, plan: Plan, update: int) -> None:
    """One update of every run; a run whose gradient is not finite stays where it is."""
    *_, (rows, ends) = adapt(runs, tasks, plan.steps, update)
    loss = rows.query_loss(ends).sum() / plan.tasks
    gradients = torch.autograd.grad(loss, list(runs.params.values()))
    for p, gradient in zip(runs.params.values(), gradients, strict=True):
        p.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
    adam.step()


def _key(plan: Plan, seeds: int) -> dict[str, str]:
    """What a file of progress must agree on with the run that takes it up."""
    return {"plan": repr(plan), "seeds": str(seeds)}


def _save(
    params: Params, adam: torch.optim.Adam, plan: Plan, seeds: int, done: int, seconds: float, keep: Path
) -> None:
    tensors = {f"params.{name}": p for name, p in params.items()}
    for name, p in params.items():
        tensors |= {f"adam.{name}.{key}": value for key, value in adam.state[p].items()}
    keep.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(keep, tensors, {**_key(plan, seeds), "done": done, "seconds": seconds})


def _resumed(params: Params, adam: torch.optim.Adam, plan: Plan, seeds: int, keep: Path) -> tuple[int, float]:
    """How many updates are in the file, and their seconds; parameters and moments are set to those in it."""
    found = kept_tensors(keep, _key(plan, seeds))
    if found is None:
        return 0, 0.0
    tensors, meta = found
    for name, p in params.items():
        p.data.copy_(tensors[f"params.{name}"])
        lead = f"adam.{name}."
        adam.state[p] = {key.removeprefix(lead): t for key, t in tensors.items() if key.startswith(lead)}
    return int(meta["done"]), float(meta["seconds"])
