"""The paper's Figure 6, learning to teleport, with the controls it lacks.

    python -m experiments.learning_to_teleport.run train      meta-trains every rule, settings and meta-seed (resumable)
    python -m experiments.learning_to_teleport.run evaluate   held-out tasks, controls, intervals, figure
    python -m experiments.learning_to_teleport.run evaluate --settings better --seeds    controls and baselines alone
    python -m experiments.learning_to_teleport.run --smoke    train and evaluate, in seconds, on toy sizes

``published`` settings are those of the authors' code (``lab/published.py``), ``better`` ones this package's defaults at
horizon 100. Baselines are tuned anew for every compared step: their losses at a step are those of the settings tuned
for the next of these steps.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.lab import published
from experiments.lab.meta_training import FINISHED, is_finished, trained
from experiments.lab.progress import Job, say, work_through
from experiments.lab.script import parser, run
from experiments.learning_to_teleport.figure import plot_curves
from experiments.learning_to_teleport.kept_losses import losses_of
from experiments.learning_to_teleport.summary import comparisons, summary
from experiments.learning_to_teleport.tables import markdown
from experiments.learning_to_teleport.tuned_baselines import measured_baselines
from meta_teleport.evaluation.controls import closed_form_controls, element_controls
from meta_teleport.evaluation.methods import Method
from meta_teleport.learned.serialization import load
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.rules.rule import Rule
from meta_teleport.runs.provenance import provenance
from meta_teleport.runs.run import write_json
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.regression import Regression

META_SEEDS = 5
RULES = tuple(published.RULES)
FAMILIES: dict[str, dict[str, Any]] = {"published": published.ACTION, "better": {}}
RULE_ARGS: dict[str, dict[str, dict[str, Any]]] = {"published": published.RULES, "better": {name: {} for name in RULES}}
TRAINING: dict[str, dict[str, TrainingConfig]] = {
    "published": published.TRAINING,
    "better": dict.fromkeys(RULES, TrainingConfig(meta_steps=500, horizon=100)),
}
HELD_OUT_TASKS, HELD_OUT_SEED = 256, 0
HORIZON, STEPS = 100, {"published": 300, "better": 1000}
COMPARED, SMOKE_COMPARED = (30, 100, 300, 1000), (3, 10)


def task_of(settings: str) -> dict[str, Any]:
    """The paper's problems in the action of these settings."""
    return {"class_path": "Regression", "init_args": FAMILIES[settings]}


def training_of(settings: str, name: str, smoke: bool) -> TrainingConfig:
    """How a rule is meta-trained."""
    training = TRAINING[settings][name]
    return published.shortened(training) if smoke else training


def folder_of(out: Path, settings: str, name: str, seed: int) -> Path:
    """The run folder of one meta-training."""
    return out / settings / name / f"seed{seed}"


def trained_rule(out: Path, settings: str, name: str, seed: int, smoke: bool) -> Rule:
    """One rule of the experiment, meta-trained as far as it has not been before. Raises ``Stopped`` on Ctrl-C."""
    spec = {"class_path": name, "init_args": RULE_ARGS[settings][name]}
    folder, training = folder_of(out, settings, name, seed), training_of(settings, name, smoke)
    family = Regression(**FAMILIES[settings])
    return trained(folder, f"{settings} {name}, seed {seed}", spec, task_of(settings), family, training, seed)


def training_jobs(out: Path, settings: list[str], rules: list[str], seeds: list[int], smoke: bool) -> Iterator[Job]:
    """Every meta-training of the experiment."""
    for seed in seeds:
        for setting in settings:
            for name in rules:
                path = folder_of(out, setting, name, seed) / FINISHED
                work = partial(trained_rule, out, setting, name, seed, smoke)
                yield Job(f"meta-training, {setting} {name}, seed {seed}", path, work)


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
            medians = summary(measured[key]["losses"])["median"].values()
            say(f"{key}: medians {', '.join(f'{x:.3g}' for x in medians)}")
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
    made = parser("learning_to_teleport", __doc__)
    made.add_argument("part", nargs="?", choices=("train", "evaluate", "all"), default="all")
    made.add_argument("--settings", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    made.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    made.add_argument("--seeds", nargs="*", type=int, default=list(range(META_SEEDS)), help="meta-seeds")
    args = made.parse_args()
    if args.part in ("train", "all"):
        work_through(list(training_jobs(args.out, args.settings, args.rules, args.seeds, args.smoke)))
    if args.part in ("evaluate", "all"):
        evaluate_all(args.out, args.settings, args.seeds, args.smoke)


if __name__ == "__main__":
    run(main, denormals=True)
