"""Sweeps over settings: the best on tuning problems, and what it reaches on fresh ones."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.factors.teleported_training import Measure, Method, Trained, random_like, train
from experiments.lab.intervals import median_interval
from meta_teleport.evaluation.statistics import compare, log10
from meta_teleport.tasks.family import Tasks

WORST = 10.0

Allowed = Callable[[Method], bool]
MeasureOf = Callable[[Any], Measure]


@dataclass(frozen=True)
class Entry:
    """A line of the tables: variants of one method, and the step sizes that each is tried with."""

    variants: Sequence[Method]
    lrs: Sequence[float]

    @property
    def runs(self) -> int:
        """How many training runs of a batch it takes to tune."""
        return sum(1 + variant.randomized for variant in self.variants)


@dataclass(frozen=True)
class Benchmark:
    """The same problems for all methods, to tune on and to report; ``measure_of(tasks)`` gives their errors, at the
    start and ``measured`` times."""

    tuning: Tasks
    fresh: Tasks
    steps: int
    measure_of: MeasureOf
    measured: int = 20


@dataclass(frozen=True)
class Sweep:
    """Errors ``(variants, step sizes, measurements, problems)``; runs that diverged count with an error of 10."""

    entry: Entry
    errors: Tensor
    steps: list[int]
    skipped: list[float]

    @property
    def final(self) -> Tensor:
        """Errors at the end, ``(variants, step sizes, problems)``."""
        return self.errors[:, :, -1]

    def best(self, allowed: Allowed) -> tuple[int, int]:
        """Variant and step size of the lowest mean logarithm of the error, among the variants that are allowed."""
        barred = torch.tensor([not allowed(variant) for variant in self.entry.variants])
        scores = log10(self.final).mean(-1).masked_fill(barred[:, None], torch.inf)
        variant, lr = divmod(int(scores.argmin()), len(self.entry.lrs))
        return variant, lr


def sweep(tasks: Tasks, entry: Entry, benchmark: Benchmark) -> Sweep:
    """Trains every problem with every step size side by side, one variant after the other."""
    grid = tasks.select(torch.arange(tasks.count).repeat_interleave(len(entry.lrs)))
    lr = torch.tensor(entry.lrs).repeat(tasks.count)
    runs = [run(grid, variant, lr, benchmark) for variant in entry.variants]
    errors = torch.stack([run.errors for run in runs]).double()
    errors = errors.nan_to_num(WORST, WORST, WORST).clamp(max=WORST).unflatten(-1, (tasks.count, len(entry.lrs)))
    return Sweep(entry, errors.permute(0, 3, 1, 2), runs[0].steps, [run.skipped for run in runs])


def run(grid: Tasks, method: Method, lr: Tensor, benchmark: Benchmark) -> Trained:
    """One variant, or its control with random elements."""
    measure = benchmark.measure_of(grid)
    trained = train(grid, method, lr, benchmark.steps, measure, benchmark.measured)
    if method.randomized:
        control = replace(method, gauge=random_like(trained.sizes, torch.Generator().manual_seed(0)))
        trained = train(grid, control, lr, benchmark.steps, measure, benchmark.measured)
    return trained


def results(
    entries: dict[str, Entry], benchmark: Benchmark, scopes: dict[str, Allowed]
) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """For each entry in turn its name and, per scope, what :func:`report` says of the settings that were best on the
    tuning problems. The reference comes first."""
    reference: dict[str, Tensor] = {}
    for name, entry in entries.items():
        tuned = sweep(benchmark.tuning, entry, benchmark)
        reports: dict[str, dict[str, Any]] = {}
        for scope, allowed in scopes.items():
            variant, lr = tuned.best(allowed)
            chosen = Entry([entry.variants[variant]], [entry.lrs[lr]])
            fresh = sweep(benchmark.fresh, chosen, benchmark)
            reference.setdefault(scope, fresh.final[0, 0])
            medians = tuned.final[variant].quantile(0.5, -1).tolist()
            reports[scope] = {
                **report(fresh, reference[scope]),
                "at_edge": len(entry.lrs) > 1 and lr in (0, len(entry.lrs) - 1),
                "tuning": {"lr": list(entry.lrs), "median": medians},
            }
        yield name, reports


def report(fresh: Sweep, reference: Tensor) -> dict[str, Any]:
    """What one method reaches on fresh problems: errors, their paired ratio to those of the reference (geometric mean
    over problems) and their median at every measured step."""
    generator = torch.Generator().manual_seed(0)
    method, errors = fresh.entry.variants[0], fresh.final[0, 0]
    ratio = compare("a", "b", {"a": errors[None], "b": reference[None]}, 0, generator)
    return {
        "settings": {"lr": fresh.entry.lrs[0], **method.arguments, **method.recorded},
        "median": float(errors.quantile(0.5)),
        "ci95": median_interval(errors, generator),
        "ratio": 10**ratio.log10_ratio,
        "ratio_ci95": [10**bound for bound in ratio.ci95],
        "wins": ratio.win_rate,
        "diverged": int((errors >= WORST).sum()),
        "skipped": fresh.skipped[0],
        "curve": {"step": fresh.steps, "median": fresh.errors[0, 0].quantile(0.5, -1).tolist()},
        "errors": errors.tolist(),
    }
