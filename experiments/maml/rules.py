"""LSTM(update, tele), meta-trained on the tasks that MAML is meta-trained on, and its controls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.lab.meta_training import trained
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.rules.rule import Rule
from meta_teleport.rules.wrappers import RandomElements, WithoutElements
from meta_teleport.tasks.few_shot import FewShot, FewShotTasks

RULE = "LSTMUpdateTele"
CONTROLS: dict[str, Callable[[Rule, FewShotTasks], Rule]] = {
    "identity elements": lambda rule, tasks: WithoutElements(rule),
    "random elements": lambda rule, tasks: RandomElements(rule, torch.Generator().manual_seed(0)),
}


def trained_rule(arguments: dict[str, Any], training: TrainingConfig, seed: int, folder: Path) -> Rule:
    """The rule of one run folder, meta-trained now as far as it has not been before; ``arguments`` are the family's."""
    spec, task = {"class_path": RULE, "init_args": {}}, {"class_path": "FewShot", "init_args": arguments}
    return trained(folder, f"{RULE}, seed {seed}", spec, task, FewShot(**arguments), training, seed)


@torch.no_grad()
def query_curves(rule: Rule, tasks: FewShotTasks, steps: int) -> tuple[Tensor, Tensor]:
    """Loss and accuracy on the query sets after 0, 1, ..., ``steps`` steps on the support sets, each ``(steps + 1,
    tasks)``."""
    phi = dict((*rule.named_parameters(), *rule.named_buffers()))
    carry = start(rule, tasks)
    points = [carry.params]
    for _ in range(steps):
        _, carry = unroll(rule, phi, tasks, carry, 1)
        points.append(carry.params)
    columns = [(tasks.query_loss(params), tasks.query_accuracy(params)) for params in points]
    losses, accuracies = zip(*columns, strict=True)
    return torch.stack(losses), torch.stack(accuracies)
