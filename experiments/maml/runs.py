"""MAML with a teleport before the inner loop: many runs and many tasks as one batched program.

learn2learn's MAML clones a module and moves the clone by gradient steps that can be differentiated. The module here is
an MLP whose parameters have one more dimension, ``(rows, *shape)``, one row per run and task: a clone adapts to all of
them at once, and the inner loss is a sum of losses that share no parameter. Each run has a step size of its own, which
is a factor of its loss.

A teleport sends the initial parameters w of a run to ``g . w``. Its elements g are chosen for each task by the support
set and then fixed: they are not differentiated, and the outer gradient passes through the action, which is linear in
the parameters of each layer.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from meta_teleport.params import Params, detach, dot, value_and_grad
from meta_teleport.symmetry.random_algebra import random_algebra
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Split
from meta_teleport.tasks.few_shot import FewShot, FewShotTasks
from meta_teleport.tasks.tasksets import learn2learn
from meta_teleport.teleportation.ascent import ascend
from meta_teleport.teleportation.gauges import GAUGES
from meta_teleport.teleportation.objectives import Loss
from meta_teleport.teleportation.strategies import fix

ASCENT_STEPS = 10
SIZES = {"gradient norm": 0.1, "random": 0.1, "gradient norm, far": 0.3, "random, far": 0.3}
SWEEPS = 10
TELEPORTS = ("none", "balanced", *SIZES)


class Runs(NamedTuple):
    """Initial parameters ``(runs, *shape)``, and of each run its teleport, its step size ``(runs,)`` and its seed."""

    params: Params
    teleports: tuple[str, ...]
    rates: Tensor
    seeds: Tensor

    def select(self, numbers: Sequence[int], teleport: str | None = None) -> "Runs":
        """Some of the runs, with their own teleport or another one."""
        index = torch.tensor(list(numbers))
        teleports = tuple(teleport or self.teleports[number] for number in numbers)
        params = {name: p.detach()[index] for name, p in self.params.items()}
        return Runs(params, teleports, self.rates[index], self.seeds[index])


class Adaptation(NamedTuple):
    """What an inner loop did to every run and task: query loss and accuracy after 0, 1, ... steps, ``(steps + 1, runs,
    tasks)``; by its teleport, the growth of the squared gradient norm and the relative change of the support loss,
    ``(runs, tasks)``."""

    loss: Tensor
    accuracy: Tensor
    growth: Tensor
    drift: Tensor


def begun(families: Sequence[FewShot], teleports: Sequence[str], rates: Sequence[float]) -> Runs:
    """Runs before meta-training, one for every teleport, step size and seed; those of a seed begin at the same random
    parameters. ``families[i]`` is where the tasks of seed i come from."""
    starts = [f.sample(1, torch.Generator().manual_seed(seed)).params for seed, f in enumerate(families)]
    settings = [(kind, rate, seed) for kind in teleports for rate in rates for seed in range(len(families))]
    params = {name: torch.cat([starts[seed][name] for _, _, seed in settings]) for name in starts[0]}
    kinds, each_rate, seeds = zip(*settings, strict=True)
    return Runs(params, kinds, torch.tensor(each_rate), torch.tensor(seeds))


def tasks_of(families: Sequence[FewShot], count: int, number: int, split: Split) -> FewShotTasks:
    """``count`` tasks of every seed, seed after seed; the same ones for the same ``number``."""
    generators = [torch.Generator().manual_seed(number * len(families) + seed) for seed in range(len(families))]
    drawn = [f.sample(count, g, split) for f, g in zip(families, generators, strict=True)]
    params, data = (
        {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for parts in ([tasks.params for tasks in drawn], [tasks.data for tasks in drawn])
    )
    return FewShotTasks(params, data, drawn[0].model, drawn[0].network_symmetry)


def adapt(
    runs: Runs, tasks: FewShotTasks, steps: int, number: int = 0, second_order: bool = True
) -> Iterator[tuple[FewShotTasks, Params]]:
    """After 0, 1, ..., ``steps`` steps of the inner loop: the task of every row and its parameters, ``(runs * tasks,
    *shape)``. The first are those after the teleport; ``number`` draws what is random in it. With ``second_order`` all
    can be differentiated by the runs' parameters."""
    each = tasks.count // (1 + int(runs.seeds.max()))
    index = (runs.seeds.unsqueeze(1) * each + torch.arange(each)).flatten()
    rows, rates = tasks.select(index), runs.rates.repeat_interleave(each)
    params = {name: p.repeat_interleave(each, 0) for name, p in runs.params.items()}
    kinds = [kind for kind in runs.teleports for _ in range(each)]
    learner = learn2learn().algorithms.MAML(tasks.model, lr=1.0, first_order=not second_order).clone()
    _place(learner.module, teleported(params, kinds, rows, torch.Generator().manual_seed(number)))
    step = torch.zeros(rows.count, dtype=torch.long)
    for i in range(steps + 1):
        moved = dict(learner.module.named_parameters())
        yield rows, moved
        if i < steps:
            learner.adapt((rates * rows.loss(moved, step)).sum())


def teleported(params: Params, kinds: Sequence[str], rows: FewShotTasks, generator: torch.Generator) -> Params:
    """Every row where its kind of teleport sends it."""
    parts = []
    for kind in dict.fromkeys(kinds):
        index = torch.tensor([i for i, own in enumerate(kinds) if own == kind])
        own = {name: p[index] for name, p in params.items()}
        if kind != "none":
            chosen, step = rows.select(index), torch.zeros(len(index), dtype=torch.long)

            def loss(params: Params, tasks: FewShotTasks = chosen, step: Tensor = step) -> Tensor:
                return tasks.loss(params, step)

            own = rows.symmetry.act(own, elements_of(kind, rows.symmetry, own, loss, generator))
        parts.append((index, own))
    back = torch.cat([index for index, _ in parts]).argsort()
    return {name: torch.cat([own[name] for _, own in parts])[back] for name in params}


@torch.no_grad()
def elements_of(
    kind: str, symmetry: Symmetry, params: Params, loss: Loss, generator: torch.Generator
) -> Sequence[Tensor]:
    """The elements of a teleport of parameters ``(rows, *shape)``. *balanced*: to the least norm of the weights.
    *gradient norm*: by ascent, in steps of 0.1, *far* in steps of 0.3. *random*: site by site as far from the identity
    as that ascent would go from there."""
    start = detach(params)
    if kind == "balanced":
        return fix(symmetry, start, loss, gauge=GAUGES["balanced"], sweeps=SWEEPS).elements
    elements = ascend(symmetry, start, None, loss, steps=ASCENT_STEPS, size=SIZES[kind]).elements
    if kind.startswith("random"):
        return symmetry.exp(random_algebra([g.log() for g in elements], generator))
    return elements


def measure(runs: Runs, tasks: FewShotTasks, steps: int) -> Adaptation:
    """Adapts every run to every task of its seed, and looks at the query sets on the way."""
    plain = runs._replace(teleports=("none",) * len(runs.teleports))
    ((rows, before),) = adapt(plain, tasks, 0)
    shape = len(runs.rates), -1
    losses, accuracies, start = [], [], None
    for rows, params in adapt(runs, tasks, steps, second_order=False):
        point = detach(params)
        start = start or point
        losses.append(rows.query_loss(point).view(shape))
        accuracies.append(rows.query_accuracy(point).view(shape))
    (old, old_norm), (new, new_norm) = (_loss_and_norm(rows, p) for p in (before, start or before))
    growth, drift = new_norm / old_norm, (new - old).abs() / old
    return Adaptation(torch.stack(losses), torch.stack(accuracies), growth.view(shape), drift.view(shape))


def _loss_and_norm(rows: FewShotTasks, params: Params) -> tuple[Tensor, Tensor]:
    step = torch.zeros(rows.count, dtype=torch.long)
    loss, gradients = value_and_grad(partial(rows.loss, step=step), params)
    return loss, dot(gradients, gradients)


def _place(module: nn.Module, params: Params) -> None:
    """Gives a clone that learn2learn has made other tensors as parameters."""
    for name, p in params.items():
        folder, _, own = name.rpartition(".")
        module.get_submodule(folder)._parameters[own] = p if p.requires_grad else p.requires_grad_()  # type: ignore[assignment]
