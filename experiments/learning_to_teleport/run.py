"""The paper's Figure 6, learning to teleport, with the controls it lacks.

    python -m experiments.learning_to_teleport.run train      meta-trains every rule, settings and meta-seed (resumable)
    python -m experiments.learning_to_teleport.run evaluate   held-out tasks, controls, intervals, figure
    python -m experiments.learning_to_teleport.run evaluate --settings better --seeds    controls and baselines alone
    python -m experiments.learning_to_teleport.run --smoke    train and evaluate, in seconds, on toy sizes

``published`` settings are those of the authors' code: one problem at a time, raw gradients, elements of Frobenius
norm 0.01 in first order, sum of the losses before each step. The authors run every problem for 100 steps (300 for
LSTM(lr, tele)) and update their networks after steps 10, 20, ..., 90; what comes later trains nothing, so a problem
ends here after 90 steps (290) and 9 updates (29). Two things are not theirs: LSTM(update) is meta-trained on 700
problems instead of 600, so that it has the same budget as LSTM(update, tele); and windows are steps 0 to 9, 10 to 19
..., where theirs are cut inside of steps 10, 20, ...: the first sums eleven losses, and the element of the step at the
cut, which gets no credit here, gets it from the window that follows. ``better`` settings are this package's
defaults at horizon 100. Baselines are tuned anew for every compared step: their losses at a step are those of the
settings tuned for the next of these steps.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.lab.output_folder import output_folder
from experiments.learning_to_teleport.figure import plot_curves
from experiments.learning_to_teleport.kept_losses import losses_of
from experiments.learning_to_teleport.summary import comparisons, summary
from experiments.learning_to_teleport.tables import markdown
from experiments.learning_to_teleport.tuned_baselines import measured_baselines
from meta_teleport.evaluation.controls import closed_form_controls, element_controls
from meta_teleport.evaluation.methods import Method
from meta_teleport.learned.serialization import build, load
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.loop import train
from meta_teleport.registry import construct
from meta_teleport.rules.rule import Rule, shapes_of
from meta_teleport.runs.run import Run, provenance, write_json
from meta_teleport.tasks.family import TaskFamily, Tasks
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
TRAINING: dict[tuple[str, str], TrainingConfig] = {
    ("published", "LSTMUpdateTele"): TrainingConfig(meta_steps=PROBLEMS * 9, horizon=90, **PUBLISHED_TRAINING),
    ("published", "LSTMUpdate"): TrainingConfig(meta_steps=PROBLEMS * 9, horizon=90, **PUBLISHED_TRAINING),
    ("published", "LSTMLrTele"): TrainingConfig(meta_steps=30 * 29, horizon=290, **PUBLISHED_TRAINING),
    **{("better", rule): TrainingConfig(meta_steps=500, horizon=100) for rule in RULES},
}
HELD_OUT_TASKS, HELD_OUT_SEED = 256, 0
HORIZON, STEPS = 100, {"published": 300, "better": 1000}
COMPARED, SMOKE_COMPARED = (30, 100, 300, 1000), (3, 10)
SMOKE = {"meta_steps": 3, "save_every": 1, "log_every": 1}


def task_of(settings: str) -> dict[str, Any]:
    """The paper's problems in the action of these settings."""
    return {"class_path": "Regression", "init_args": FAMILIES[settings]}


def config_of(task: dict[str, Any], settings: str, rule: str, seed: int, training: TrainingConfig) -> dict[str, Any]:
    """What a run folder stores about one meta-training."""
    return {
        "task": task,
        "rule": {"class_path": rule, "init_args": RULE_ARGS[settings, rule]},
        "training": asdict(training),
        "seed": seed,
        "dtype": "float32",
    }


def training_of(settings: str, name: str, smoke: bool) -> TrainingConfig:
    """How a rule is meta-trained."""
    training = TRAINING[settings, name]
    return TrainingConfig(**{**asdict(training), **SMOKE}) if smoke else training


def folder_of(out: Path, settings: str, name: str, seed: int) -> Path:
    """The run folder of one meta-training."""
    return out / settings / name / f"seed{seed}"


def is_finished(folder: Path, training: TrainingConfig) -> bool:
    """Whether the rule in a run folder has had all its meta-steps."""
    return (folder / "training.safetensors").exists() and load(folder).meta_step == training.meta_steps


def trained(
    out: Path, settings: str, name: str, seed: int, smoke: bool, task: dict[str, Any], report: Callable[[Any], None]
) -> Rule:
    """The rule of one run folder, meta-trained on ``task`` now as far as it has not been before."""
    training, folder = training_of(settings, name, smoke), folder_of(out, settings, name, seed)
    if is_finished(folder, training):
        return load(folder)
    config, resume = config_of(task, settings, name, seed, training), (folder / "training.safetensors").exists()
    family = construct(task, TaskFamily)
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

                    trained(out, setting, name, seed, smoke, task_of(setting), report)


def held_out(settings: str, smoke: bool) -> Tasks:
    """The held-out tasks; those of the two settings differ in their group action alone."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    return Regression(**FAMILIES[settings]).sample(4 if smoke else HELD_OUT_TASKS, generator, "held_out")


def methods(out: Path, setting: str, seeds: list[int], smoke: bool) -> Iterator[tuple[str, list[Method]]]:
    """Every method of one setting by name, once per meta-seed where it has one."""
    tasks = held_out(setting, smoke)
    for name in RULES if seeds else ():
        rules = [load(folder_of(out, setting, name, seed)) for seed in seeds]
        yield name, [Method(name, "learned", rule) for rule in rules]
        if name != "LSTMUpdate":
            drawn = [torch.Generator().manual_seed(seed) for seed in seeds]
            pairs = [element_controls(rule, name, g) for rule, g in zip(rules, drawn, strict=True)]
            for controls in zip(*pairs, strict=True):
                yield controls[0].name, list(controls)
    if setting == "better":
        yield from ((control.name, [control]) for control in closed_form_controls(tasks))


def evaluate_all(out: Path, settings: list[str], seeds: list[int], smoke: bool) -> None:
    """Measures everything, compares, and writes results.json and the figures.

    A meta-seed counts once all three rules of its settings are trained.
    """
    measured: dict[str, dict[str, Any]] = {}
    done: dict[str, list[int]] = {}
    compared = SMOKE_COMPARED if smoke else COMPARED
    for setting in settings:
        tasks, steps = held_out(setting, smoke), 10 if smoke else STEPS[setting]
        done[setting] = [
            seed
            for seed in seeds
            if all(is_finished(folder_of(out, setting, n, seed), training_of(setting, n, smoke)) for n in RULES)
        ]
        for name, versions in methods(out, setting, done[setting], smoke):
            key = f"{setting}/{name}" if name.startswith("LSTM") else name
            paths = [out / "held_out" / f"{key.replace('/', '-')}-{i}.safetensors" for i in range(len(versions))]
            rows = [losses_of(method, tasks, path, steps) for method, path in zip(versions, paths, strict=True)]
            measured[key] = {"losses": torch.stack([row.pop("losses") for row in rows]), "runs": rows}
            print(key, [f"{x:.3g}" for x in summary(measured[key]["losses"])["median"].values()], file=sys.stderr)
        if setting == "better":
            measured |= measured_baselines(Regression(), tasks, compared, HELD_OUT_SEED, out)
    losses = {key: m["losses"] for key, m in measured.items()}
    results = {
        "tasks": tasks.count,
        "meta_seeds": {setting: len(finished) for setting, finished in done.items()},
        "provenance": provenance(),
        "methods": {key: {**summary(m["losses"]), "runs": m["runs"]} for key, m in measured.items()},
        "comparisons": list(comparisons(losses, settings, list(FAMILIES), compared)),
    }
    write_json(out / "results.json", results)
    text = markdown(json.loads((out / "results.json").read_text()))
    (out / "results.md").write_text(text)
    if any(done.values()):
        plot_curves(losses, out, HORIZON)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("train", "evaluate", "all"), default="all")
    parser.add_argument("--out", type=output_folder, default="runs/learning_to_teleport")
    parser.add_argument("--settings", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(META_SEEDS)), help="meta-seeds")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, seconds")
    args = parser.parse_args()
    if args.part in ("train", "all"):
        train_all(args.out, args.settings, args.rules, args.seeds, args.smoke)
    if args.part in ("evaluate", "all"):
        evaluate_all(args.out, args.settings, args.seeds, args.smoke)


if __name__ == "__main__":
    main()
