"""Numbers of held_out.py: what a method reaches, and the rule against it at equal steps and at equal time."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from experiments.held_out.runs import Outcome
from experiments.lab.intervals import compare_over_seeds
from meta_teleport.evaluation.statistics import log10

GOALS = (10, 20, 30)
SOLVED = 1e-6
Curves = dict[str, list[Outcome]]


def numbers(name: str, curves: Curves, horizon: int, stochastic: bool) -> dict[str, Any]:
    """What one method reaches: medians over tasks and meta-seeds, by step and by horizon, and how it fails."""
    runs = curves[name]
    steps = runs[0].steps.tolist()
    found: dict[str, Any] = {"start": median([run.values[0] for run in runs]), "meta_seeds": len(runs)}
    found["median"] = {m: median(ends) for m, ends in lengths(name, curves, horizon).items()}
    if not stochastic:
        found["median_at"] = {s: median([run.at(s) for run in runs]) for s in GOALS if s in steps}
        found["steps_to_solved"] = steps_to(runs, SOLVED)
        found["worst_seed_at"] = {s: max(median([run.at(s)]) for run in runs) for s in GOALS if s in steps}
    found["highest"] = max(run.numbers["highest"] for run in runs)
    found["failed"] = sum(run.numbers["failed"] for run in runs)
    found["undone"] = sum(run.numbers.get("undone", 0) for run in runs)
    found["seconds_per_step"] = sum(float(run.seconds[-1]) / int(run.steps[-1]) for run in runs) / len(runs)
    found["settings"] = runs[0].numbers["settings"]
    return found


def lengths(name: str, curves: Curves, horizon: int) -> dict[int, list[Tensor]]:
    """What each run of a method has reached after 1, 3 and 10 horizons, in runs of their own where there are such."""
    found = {}
    for multiple in (1, 3, 10):
        if own := curves.get(f"{name}, x{multiple}"):
            found[multiple] = [run.values[-1] for run in own]
        elif multiple * horizon in curves[name][0].steps.tolist():
            found[multiple] = [run.at(multiple * horizon) for run in curves[name]]
    return found


def against(name: str, curves: Curves, horizon: int) -> dict[str, Any]:
    """The rule at its horizon against a method after as many steps, and after as much time."""
    rule, other = curves["rule"], curves[name]
    count = min(rule[0].values.shape[1], other[0].values.shape[1])
    own = torch.stack([run.at(horizon)[:count] for run in rule])
    same_steps = torch.stack([run.at(min(horizon, int(run.steps[-1])))[:count] for run in other])
    seconds = [per_task(run, horizon) for run in rule]
    numbers = [i % len(other) for i in range(len(rule))]
    same_time = torch.stack([within(name, curves, i, s)[:count] for i, s in zip(numbers, seconds, strict=True)])
    ends = [float(curve_of(name, curves, i)[0][-1]) for i in numbers]
    reached = all(end >= when for end, when in zip(ends, seconds, strict=True))
    return {
        "equal_steps": compare_over_seeds(own, same_steps),
        "equal_time": {**compare_over_seeds(own, same_time, True), "method_ran_as_long": reached},
    }


def steps_to(runs: list[Outcome], fraction: float) -> int | None:
    """The median over runs and tasks of the first step at which this fraction of the first value is reached; None if
    it is not."""
    found = []
    for run in runs:
        reached = run.values <= fraction * run.values[:1]
        first = run.steps[reached.int().argmax(0)].double()
        found.append(torch.where(reached.any(0), first, torch.inf))
    middle = float(torch.cat(found).median())
    return int(middle) if middle < torch.inf else None


def per_task(run: Outcome, step: int) -> float:
    """Seconds per task up to ``step``."""
    return float(run.seconds[int((run.steps == step).nonzero()[0])]) / run.values.shape[1]


def within(name: str, curves: Curves, number: int, when: float) -> Tensor:
    """What a method reaches in a time per task, ``(tasks,)``: on its curve, or at the end of a run that is over by then
    where the mean log10 of that is lower, as a longer run may well be worse than a short one."""
    runs = _lengths_of(name, curves, number)
    seconds = [run.seconds / run.values.shape[1] for run in runs]
    found = [at_time(*curve_of(name, curves, number), when)]
    found += [run.values[-1] for run, spent in zip(runs, seconds, strict=True) if float(spent[-1]) <= when]
    return min(found, key=lambda values: float(log10(values).mean()))


def curve_of(name: str, curves: Curves, number: int) -> tuple[Tensor, Tensor]:
    """Seconds per task and values ``(points, tasks)`` of one run: its curve, then the ends of the longer runs."""
    first, *longer = _lengths_of(name, curves, number)
    count = first.values.shape[1]
    seconds = [first.seconds, *(run.seconds[-1:] for run in longer)]
    return torch.cat(seconds) / count, torch.cat([first.values, *(run.values[-1:] for run in longer)])


def _lengths_of(name: str, curves: Curves, number: int) -> list[Outcome]:
    """The runs of one method, of one horizon and of more."""
    longer = (curves.get(f"{name}, x{multiple}", [])[number : number + 1] for multiple in (3, 10))
    return [curves[name][number], *chain.from_iterable(longer)]


def at_time(seconds: Tensor, values: Tensor, when: float) -> Tensor:
    """Values ``(tasks,)`` at a time, log-linear between measurements; the last ones if the curve ends before."""
    later = int((seconds < when).sum())
    if later >= len(seconds):
        return values[-1]
    before, after = max(later - 1, 0), later
    width = float(seconds[after] - seconds[before])
    share = (when - float(seconds[before])) / width if width > 0 else 1.0
    return 10 ** ((1 - share) * log10(values[before]) + share * log10(values[after]))


def median(values: list[Tensor]) -> float:
    """Over everything."""
    return float(torch.cat(values).quantile(0.5)) if values else float("nan")
