"""Optimisation-based meta-learning with and without teleports: learn2learn's MAML, and LSTM(update, tele) beside it.

    python -m experiments.maml.run --data digits mnist fashion_mnist --data-folder data
    python -m experiments.maml.run --smoke

3-way 5-shot tasks with an MLP of fewer than 2000 parameters, on images of 8 x 8 (digits) or 7 x 7 pixels. Of every ten
classes four are held out, others for every meta-seed, so that with five meta-seeds each class is held out twice; no
held-out class is ever trained on. MAML adapts by five steps on the support set, of second order. Its variants teleport
the initial parameters of each task along the positive scalings of the hidden units, which leave the network's function
alone, before these steps, in meta-training and at evaluation; or at evaluation only. All variants have the same number
of updates on the same tasks; each has the step size that was best on training tasks.

LSTM(update, tele) begins every task at the same random parameters, and is meta-trained on twice as many task-steps as
one run of MAML. Its meta-loss is the sum of the support losses (their logarithm, this package's default objective,
rewards a cross entropy without bound for vanishing on single tasks). Reported are loss and accuracy on the query sets
of held-out tasks. What is finished is kept in --out, data set by data set, and not done again.
"""

import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.lab.progress import kept, say
from experiments.lab.script import finish, image_parser, run
from experiments.maml.report import markdown, plot, summary
from experiments.maml.rules import CONTROLS, RULE, query_curves, trained_rule
from experiments.maml.runs import TELEPORTS, Adaptation, Runs, begun, measure, tasks_of
from experiments.maml.training import Plan, meta_train
from meta_teleport.errors import UserError
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.tasks.few_shot import FewShot, FewShotTasks
from meta_teleport.tasks.images import load_images

NAME = "maml"
DATA, SEEDS = ("digits", "mnist", "fashion_mnist"), 5
WAYS, SHOTS, QUERIES = 3, 5, 15
HIDDEN = [20, 16]
PIXELS = {"digits": 8}
OTHER_PIXELS = 7
PLAN = Plan(teleports=TELEPORTS, rates=(0.1, 0.3, 1.0), updates=500, tasks=8, steps=5, outer_rate=3e-3)
START_RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
TRAINING = TrainingConfig(meta_steps=250, tasks=32, window=5, horizon=10, objective="sum")
SHOWN = "LSTM(update, tele)"
LAST_STEP = 10
TUNING_TASKS, HELD_OUT_TASKS = 40, 200
TUNING, HELD_OUT = 10**6, 10**6 + 1
SMOKE_PLAN = Plan(teleports=("none", "balanced", "gradient norm", "random"), rates=(0.3, 1.0), updates=3, tasks=2)
SMOKE_TRAINING = TrainingConfig(meta_steps=2, tasks=3, window=2, horizon=4)

Curves = dict[str, tuple[torch.Tensor, torch.Tensor]]


def family_arguments(data: str, args: Namespace, seed: int, classes: int) -> dict[str, Any]:
    """The family of one meta-seed, which holds out two fifths of the classes."""
    count = 2 * classes // 5
    return {
        "data": data,
        "folder": str(args.data_folder),
        "download": not args.no_download,
        "ways": WAYS,
        "shots": SHOTS,
        "queries": QUERIES,
        "held_out": [(count * seed + i) % classes for i in range(count)],
        "pixels": PIXELS.get(data, OTHER_PIXELS),
        "hidden": HIDDEN,
        "start": seed,
    }


def chosen(runs: Runs, plan: Plan, tasks: FewShotTasks, seeds: int) -> dict[str, list[int]]:
    """For each teleport the runs, one per seed, with the step size that is best on these tasks after the inner loop."""
    loss = measure(runs, tasks, plan.steps).loss[-1].mean(-1).view(len(plan.teleports), len(plan.rates), seeds)
    best = loss.mean(-1).nan_to_num(torch.inf).argmin(-1).tolist()
    first = [(i * len(plan.rates) + rate) * seeds for i, rate in enumerate(best)]
    return {kind: list(range(start, start + seeds)) for kind, start in zip(plan.teleports, first, strict=True)}


def maml_methods(
    families: list[FewShot], plan: Plan, runs: Runs, held_out: FewShotTasks
) -> Iterator[tuple[str, dict[str, Any], Adaptation]]:
    """Name, settings and adaptation to held-out tasks of every variant of MAML, and of no meta-training at all."""
    seeds = len(families)
    tuning = tasks_of(families, TUNING_TASKS, TUNING, "train")
    best = chosen(runs, plan, tuning, seeds)

    def evaluated(runs: Runs, trained: str | None, at: str) -> tuple[dict[str, Any], Adaptation]:
        found = {"trained": trained, "evaluated": at, "step_size": float(runs.rates[0])}
        return found, measure(runs, held_out, LAST_STEP)

    for kind, numbers in best.items():
        yield "MAML" if kind == "none" else f"MAML, {kind}", *evaluated(runs.select(numbers), kind, kind)
    for kind in plan.teleports[1:]:
        moved = runs.select(best["none"], kind)
        yield f"MAML, {kind} at evaluation only", *evaluated(moved, "none", kind)
    alone = replace(plan, teleports=("none",), rates=START_RATES)
    starts = begun(families, alone.teleports, alone.rates)
    numbers = chosen(starts, alone, tuning, seeds)["none"]
    yield "gradient descent, no meta-training", *evaluated(starts.select(numbers), None, "none")


def rule_curves(
    arguments: list[dict[str, Any]], training: TrainingConfig, held_out: FewShotTasks, out: Path
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, query loss and accuracy ``(steps + 1, seeds, tasks)`` of the learned rules and of their controls."""
    each = held_out.count // len(arguments)
    parts = [held_out.select(torch.arange(seed * each, (seed + 1) * each)) for seed in range(len(arguments))]

    def curves(rules: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [query_curves(rule, tasks, LAST_STEP) for rule, tasks in zip(rules, parts, strict=True)]
        losses, accuracies = zip(*pairs, strict=True)
        return torch.stack(losses, 1), torch.stack(accuracies, 1)

    rules = [trained_rule(own, training, seed, out / RULE / f"seed{seed}") for seed, own in enumerate(arguments)]
    yield SHOWN, *curves(rules)
    for control, wrap in CONTROLS.items():
        yield f"{SHOWN}, {control}", *curves([wrap(rule, tasks) for rule, tasks in zip(rules, parts, strict=True)])


def measured(data: str, args: Namespace, plan: Plan, training: TrainingConfig) -> dict[str, Any]:
    """Everything about one data set: now, or from the file in which it was kept.

    Raises ``UserError`` for a file of other settings.
    """
    key = {"plan": repr(plan), "training": repr(training), "seeds": args.seeds}
    return kept(args.out / Path(data).stem / "measured.json", partial(measure_data, data, args, plan, training), key)


def measure_data(data: str, args: Namespace, plan: Plan, training: TrainingConfig) -> dict[str, Any]:
    """Meta-trains and measures everything on one data set."""
    classes = load_images(data, args.data_folder, not args.no_download).classes
    arguments = [family_arguments(data, args, seed, classes) for seed in range(args.seeds)]
    families = [FewShot(**own) for own in arguments]
    out = args.out / Path(data).stem
    runs, seconds = meta_train(families, plan, out / "maml.safetensors", f"{data} MAML")
    say(f"{data}: MAML meta-trained, {len(runs.teleports)} runs in {seconds:.0f} s")
    began = time.perf_counter()
    held_out = tasks_of(families, HELD_OUT_TASKS if not args.smoke else 4, HELD_OUT, "held_out")
    curves: Curves = {}
    settings: dict[str, dict[str, Any]] = {}
    for name, found, end in maml_methods(families, plan, runs, held_out):
        curves[name] = end.loss, end.accuracy
        say(_line(data, name, end.accuracy[plan.steps], plan.steps))
        settings[name] = {**found, "growth": float(end.growth.mean()), "drift": float(end.drift.max())}
    for name, loss, accuracy in rule_curves(arguments, training, held_out, out):
        curves[name] = loss, accuracy
        settings[name] = {}
        say(_line(data, name, accuracy[plan.steps], plan.steps))
    parameters = sum(p[0].numel() for p in held_out.params.values())
    held = [own["held_out"] for own in arguments]
    return {
        "held_out_classes": held,
        "parameters": parameters,
        "seconds": {"maml": round(seconds, 1), "rules and evaluation": round(time.perf_counter() - began, 1)},
        **summary(curves, settings, plan.steps),
    }


def _line(data: str, name: str, accuracy: torch.Tensor, steps: int) -> str:
    return f"{data}: {name}, query accuracy {float(accuracy.mean()):.3f} after {steps} steps"


def main() -> None:
    args = image_parser(NAME, __doc__, DATA, SEEDS).parse_args()
    if args.device != "cpu":
        raise UserError("networks of this size are trained on the CPU: leave --device away")
    if args.seeds < 2:
        raise UserError("intervals over meta-seeds need at least two: give --seeds 2 or more")
    plan, training = (SMOKE_PLAN, SMOKE_TRAINING) if args.smoke else (PLAN, TRAINING)
    results = {Path(d).stem: measured(d, args, plan, training) for d in (["digits"] if args.smoke else args.data)}
    knobs = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES, "hidden": HIDDEN, "seeds": args.seeds}
    content = {"settings": {**knobs, "maml": repr(plan), "rules": repr(training)}, "data": results}
    finish(args, content, markdown(results, plan.steps), {NAME: plot(results, plan.steps)})


if __name__ == "__main__":
    run(main)
