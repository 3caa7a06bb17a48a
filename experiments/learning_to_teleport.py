"""The paper's Figure 6, learning to teleport, with the controls it lacks.

    python experiments/learning_to_teleport.py train      meta-trains every rule, settings and meta-seed (resumable)
    python experiments/learning_to_teleport.py evaluate   held-out tasks, controls, intervals, figure
    python experiments/learning_to_teleport.py --smoke    both, in seconds, on toy sizes

``published`` settings are those of the authors' code: one problem at a time, raw gradients, elements of Frobenius
norm 0.01 in first order, sum of the losses before each step. One is not: LSTM(update) is meta-trained on 700 problems
instead of 600, so that it has the same budget as LSTM(update, tele). ``better`` settings are this package's defaults
at horizon 100.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from meta_teleport.learned.load import build, load
from meta_teleport.learned.rule import Rule, shapes_of
from meta_teleport.meta.training import Training, train
from meta_teleport.record import Run
from meta_teleport.tasks.regression import Regression

META_SEEDS = 5
RULES = ("LSTMUpdateTele", "LSTMUpdate", "LSTMLrTele")
FAMILIES: dict[str, dict[str, Any]] = {"published": {"group": "first_order", "displacement": False}, "better": {}}

PUBLISHED_RULE: dict[str, Any] = {"features": "raw", "gradient_term": False, "safeguard": False}
PUBLISHED_ELEMENT: dict[str, Any] = {"element_size": "fixed", "size": 0.01}
RULE_ARGS: dict[tuple[str, str], dict[str, Any]] = {
    ("published", "LSTMUpdate"): {"hidden_size": 300, **PUBLISHED_RULE},
    ("published", "LSTMUpdateTele"): {"hidden_size": 300, **PUBLISHED_RULE, **PUBLISHED_ELEMENT},
    ("published", "LSTMLrTele"): {"hidden_size": 20, **PUBLISHED_RULE, **PUBLISHED_ELEMENT},
    ("better", "LSTMUpdate"): {},
    ("better", "LSTMUpdateTele"): {},
    ("better", "LSTMLrTele"): {},
}
PUBLISHED_TRAINING: dict[str, Any] = {
    "tasks": 1,
    "window": 10,
    "lr_update": 1e-3,
    "lr_element": 1e-4,
    "objective": "sum",
    "clip": 0.0,
    "decay": "constant",
    "losses_before": True,
    "staggered": False,
    "save_every": 500,
    "log_every": 50,
}
PROBLEMS = 700
TRAINING: dict[tuple[str, str], Training] = {
    ("published", "LSTMUpdateTele"): Training(meta_steps=PROBLEMS * 10, horizon=100, **PUBLISHED_TRAINING),
    ("published", "LSTMUpdate"): Training(meta_steps=PROBLEMS * 10, horizon=100, **PUBLISHED_TRAINING),
    ("published", "LSTMLrTele"): Training(meta_steps=30 * 30, horizon=300, **PUBLISHED_TRAINING),
    **{("better", rule): Training(meta_steps=500, horizon=100) for rule in RULES},
}
SMOKE = {"meta_steps": 3, "save_every": 1, "log_every": 1}


def config_of(settings: str, rule: str, seed: int, training: Training) -> dict[str, Any]:
    """What a run folder stores about one meta-training."""
    return {
        "task": {"class_path": "meta_teleport.tasks.regression.Regression", "init_args": FAMILIES[settings]},
        "rule": {"class_path": f"meta_teleport.learned.lstm.{rule}", "init_args": RULE_ARGS[settings, rule]},
        "training": asdict(training),
        "seed": seed,
        "dtype": "float32",
    }


def trained(out: Path, settings: str, name: str, seed: int, smoke: bool, report: Callable[[Any], None]) -> Rule:
    """The rule of one run folder, meta-trained now as far as it has not been before."""
    training = TRAINING[settings, name]
    if smoke:
        training = Training(**{**asdict(training), **SMOKE})
    folder = out / settings / name / f"seed{seed}"
    config = config_of(settings, name, seed, training)
    resume = (folder / "training.safetensors").exists()
    if resume and load(folder).meta_step == training.meta_steps:
        return load(folder)
    family = Regression(**FAMILIES[settings])
    tasks = family.sample(1, torch.Generator().manual_seed(0))
    rule = build(config["rule"], shapes_of(tasks.params, tasks.symmetry), seed)
    run = Run.open(folder) if (folder / "config.json").exists() else Run.create(folder, config)
    train(rule, family, training, seed=seed, run=run, resume=resume, report=report)
    run.close()
    return load(folder)


def train_all(out: Path, settings: list[str], rules: list[str], seeds: list[int], smoke: bool) -> None:
    """Every run of the experiment, one after the other."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as bar:
        for seed in seeds:
            for setting in settings:
                for name in rules:
                    line = bar.add_task(f"{setting} {name} seed {seed}", total=None)

                    def report(p: Any, line: Any = line) -> None:
                        bar.update(line, completed=p.meta_step, total=p.meta_steps)

                    trained(out, setting, name, seed, smoke, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("train", "evaluate", "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path("runs/learning_to_teleport"))
    parser.add_argument("--settings", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(META_SEEDS)))
    parser.add_argument("--smoke", action="store_true", help="toy sizes, seconds")
    args = parser.parse_args()
    if args.part in ("train", "all"):
        train_all(args.out, args.settings, args.rules, args.seeds, args.smoke)


if __name__ == "__main__":
    main()
