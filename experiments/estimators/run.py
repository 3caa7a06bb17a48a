"""Four estimators of one meta-gradient at equal task-steps: truncated and full back-propagation, ES and PES.

    python -m experiments.estimators.run            5 minutes of one core of a busy machine
    python -m experiments.estimators.run --smoke    seconds, no claim

What is meta-trained are two numbers: the step length of gradient descent at the first step and at the horizon. Tasks
are noisy linear regressions, where long steps pay late: they raise the error of the next few steps by the noise, and
go far where curvature is low. So a window of a tenth of a life asks for shorter steps than the life does. The learning
rate of the two is chosen for each estimator on training tasks, by a meta-seed that no other part uses. Writes
``estimators.json``, ``.md``, ``.png`` and ``.pdf`` to ``--out``; every meta-training that is done is kept there, and
not done again.
"""

import time
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.estimators.report import compared, life, markdown, mean_and_interval, plot
from experiments.estimators.training import ESTIMATORS, FULL, Plan, drawn, gradients, held_out_errors, meta_trained
from experiments.lab.progress import say
from experiments.lab.script import finish, parser, run
from meta_teleport.errors import UserError
from meta_teleport.runs.run import read_json, write_json
from meta_teleport.tasks.family import Tasks

NAME = "estimators"
SMOKE = Plan(
    horizon=10,
    window=5,
    tasks=4,
    budget=80,
    rates=(0.1, 0.3),
    seeds=2,
    tuning_tasks=4,
    held_out_tasks=8,
    checkpoints=2,
    lives=2,
)
TUNING_SEED = 1000
FIRST, LAST = (-3.5, -3.0, -2.75, -2.5, -2.25, -2.0), (-7.0, -6.0, -5.0, -4.5, -4.0, -3.0)


def kept(plan: Plan, estimator: str, rate: float, seed: int, out: Path) -> dict[str, Any]:
    """Seconds and meta-parameters during one meta-training: done now, or read from where an earlier call has kept them.

    Raises ``UserError`` for what other settings have left there.
    """
    settings = repr((plan.training(estimator, rate), plan.start, plan.checkpoints))
    path = out / "trainings" / f"{estimator.replace(' ', '-')}-{rate:g}-{seed}.json"
    if path.exists():
        found = read_json(path)
        if found["settings"] != settings:
            raise UserError(f"{path} is of other settings: choose another --out")
        return found
    began = time.process_time()
    found = {"settings": settings, "ends": meta_trained(plan, estimator, rate, seed)}
    found["seconds"] = time.process_time() - began
    path.parent.mkdir(exist_ok=True)
    write_json(path, found)
    say(f"{estimator}, rate {rate:g}, meta-seed {seed}: {found['seconds']:.0f} s, ends at {found['ends'][-1]}")
    return found


def errors_of(plan: Plan, ends: list[float] | tuple[float, float], tasks: Tasks) -> Tensor:
    """Errors ``(horizon + 1, tasks)`` with these meta-parameters."""
    return held_out_errors(plan.rule((ends[0], ends[1])), tasks, plan.horizon)


def best_of_grid(plan: Plan, training: Tasks, held_out: Tasks) -> tuple[dict[str, Any], Tensor]:
    """The schedule with the least meta-loss on training tasks; its errors on held-out ones ``(horizon + 1, tasks)``."""
    grid = list(product(FIRST, LAST))
    scores = [float(life(errors_of(plan, ends, training)).log().mean()) for ends in grid]
    ends = grid[scores.index(min(scores))]
    errors = errors_of(plan, ends, held_out)
    row = {"ends": ends, "lengths": torch.tensor(ends).exp().tolist(), "median": errors.median(-1).values.tolist()}
    return {**row, "life": compared(life(errors)[None]), "end": compared(errors[-1:])}, errors


def measured(plan: Plan, out: Path) -> dict[str, Any]:
    """Everything: the best schedule, and of each estimator its gradients and its meta-trainings."""
    training = drawn(plan, "train", plan.tuning_tasks)
    held_out = drawn(plan, "held_out", plan.held_out_tasks)
    best, best_errors = best_of_grid(plan, training, held_out)
    errors, rows = {}, {}
    for name in ESTIMATORS:
        tried = {rate: kept(plan, name, rate, TUNING_SEED, out)["ends"][-1] for rate in plan.rates}
        scores = {rate: float(life(errors_of(plan, ends, training)).log().mean()) for rate, ends in tried.items()}
        rate = min(scores, key=scores.__getitem__)
        runs = [kept(plan, name, rate, seed, out) for seed in range(plan.seeds)]
        by_time = torch.stack([torch.stack([errors_of(plan, ends, held_out) for ends in r["ends"]]) for r in runs])
        errors[name] = by_time[:, -1]  # (seeds, horizon + 1, tasks)
        ends = torch.tensor([r["ends"][-1] for r in runs])
        rows[name] = {
            "rate": rate,
            "tuning": scores,
            "updates": plan.training(name).meta_steps,
            "ends": ends.tolist(),
            "lengths": ends.mean(0).exp().tolist(),
            "median": errors[name].transpose(0, 1).flatten(1).median(1).values.tolist(),
            "during": life(by_time).log10().mean(-1).tolist(),
            "seconds": sum(r["seconds"] for r in runs) / len(runs),
        }
    for name, row in rows.items():
        own, end = life(errors[name]), errors[name][:, -1]
        row |= {"life": compared(own), "life_above_best": compared(own, life(best_errors)[None])}
        row |= {"end": compared(end), "end_above_best": compared(end, best_errors[-1:])}
        row["end_above_full"] = compared(end, errors[FULL][:, -1])
    slopes = {name: [mean_and_interval(g) for g in gradients(plan, name, 0).unbind(1)] for name in ESTIMATORS}
    return {"plan": asdict(plan), "best": best, "estimators": rows, "gradients": slopes}


def main() -> None:
    made = parser(NAME, __doc__)
    made.add_argument("--seeds", type=int, help="meta-seeds, 2 or more")
    args = made.parse_args()
    plan = SMOKE if args.smoke else Plan()
    if args.seeds is not None:
        plan = replace(plan, seeds=args.seeds)
    if plan.seeds < 2:
        raise UserError(f"--seeds {plan.seeds} gives no interval: take 2 or more")
    results = measured(plan, args.out)
    finish(args, results, markdown(results), {NAME: plot(results)})


if __name__ == "__main__":
    run(main)
