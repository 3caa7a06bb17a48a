"""LSTM(update, tele) as published, beside the rule on one small member of a family, as it fits one shape only."""

from pathlib import Path
from typing import Any

from experiments.lab.meta_training import trained
from experiments.lab.published import ACTION, RULES, TRAINING, shortened
from meta_teleport.registry import class_path, construct
from meta_teleport.rules.rule import Rule
from meta_teleport.tasks.factorization import Factorization
from meta_teleport.tasks.family import TaskFamily
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.regression import Regression

NAME = "LSTM(update, tele) as published"
RULE = "LSTMUpdateTele"
GAUSSIAN: dict[str, Any] = {"width": 16, "data": "gaussian", **ACTION}
FACTORS: dict[str, Any] = {"rank": 4, "inputs": 24, "outputs": 24}
TASKS: dict[tuple[str, str], tuple[type[TaskFamily], dict[str, Any]]] = {
    ("f1", "width 20"): (Regression, ACTION),
    ("f2", "width 16"): (Regression, GAUSSIAN),
    ("f2-large", "width 16, n = 8 d"): (
        Regression,
        {**GAUSSIAN, "points": 128, "batch": 16, "labels": "teacher", "noise": 0.1},
    ),
    ("f3", "noisy, rank 4, 24 x 24"): (Factorization, {**FACTORS, "batch": 16, "noise": 0.1}),
    ("f3-noiseless", "rank 4, 24 x 24, condition 1"): (
        Factorization,
        {**FACTORS, "condition": 1.0, "anisotropy": 1.0, "batch": None},
    ),
    ("f4", "rosenbrock"): (Functions, {"function": "rosenbrock"}),
}
"""By family and member the same tasks, in the action that the rule was published with where there is a choice."""


def published_task(family: str, member: str) -> dict[str, Any]:
    """What the rule is meta-trained on, as a config has it."""
    cls, arguments = TASKS[family, member]
    return {"class_path": class_path(cls), "init_args": arguments}


def published_rule(out: Path, family: str, member: str, seed: int, smoke: bool) -> tuple[Rule, TaskFamily]:
    """The rule, meta-trained now as far as it has not been before in its authors' way, and the family of its tasks."""
    task, training = published_task(family, member), TRAINING[RULE]
    tasks: TaskFamily = construct(task, TaskFamily)
    spec, training = {"class_path": RULE, "init_args": RULES[RULE]}, shortened(training) if smoke else training
    folder = out / "lstm" / family / "published" / RULE / f"seed{seed}"
    return trained(folder, f"{family}, {NAME}, seed {seed}", spec, task, tasks, training, seed), tasks
