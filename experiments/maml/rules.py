"""LSTM(update, tele), meta-trained on the tasks that MAML is meta-trained on, and its controls."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.lab.image_training import Stopped
from meta_teleport.cli.terminal import stopping, training_bar
from meta_teleport.learned.serialization import build, load
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.loop import train
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.rules.rule import Rule, shapes_of
from meta_teleport.rules.wrappers import RandomElements, WithoutElements
from meta_teleport.runs.checkpoint import load_tensors
from meta_teleport.runs.run import Run
from meta_teleport.tasks.few_shot import FewShot, FewShotTasks

CONTROLS: dict[str, Callable[[Rule, FewShotTasks], Rule]] = {
    "identity elements": lambda rule, tasks: WithoutElements(rule),
    "random elements": lambda rule, tasks: RandomElements(rule, torch.Generator().manual_seed(0)),
}


def trained(name: str, arguments: dict[str, Any], training: TrainingConfig, seed: int, folder: Path) -> Rule:
    """The rule of one run folder, meta-trained now as far as it has not been before; ``arguments`` are the family's.

    Raises ``Stopped`` on Ctrl-C, and ``UserError`` for a folder of other settings.
    """
    config: dict[str, Any] = {
        "task": {"class_path": "FewShot", "init_args": arguments},
        "rule": {"class_path": name, "init_args": {}},
        "training": asdict(training),
        "seed": seed,
        "dtype": "float32",
    }
    run = Run.open(folder) if (folder / "config.json").exists() else Run.create(folder, config)
    resume = run.state_path.exists()
    if resume and load_tensors(run.state_path)[1]["meta_step"] == training.meta_steps:
        return load(folder)
    family = FewShot(**arguments)
    tasks = family.sample(1, torch.Generator().manual_seed(0))
    rule = build(config["rule"], shapes_of(tasks.params, tasks.symmetry), seed)
    with stopping() as stop, training_bar(training.meta_steps) as report:
        summary = train(rule, family, training, seed=seed, run=run, resume=resume, report=report, should_stop=stop)
    run.close()
    if not summary.finished:
        raise Stopped(f"{folder}: stopped after meta-step {summary.meta_step}; the same command goes on from there")
    return rule


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
