"""All runs of held_out.py on one member of a family: which method, for how long, and how it is made."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from experiments.held_out.bench import SEED, Bench
from experiments.held_out.methods import Contestant, closed_form, contestants
from experiments.held_out.published import NAME as PUBLISHED
from experiments.held_out.published import TASKS as PUBLISHED_TASKS
from experiments.held_out.published import published_rule
from experiments.held_out.rules import KINDS, trained_rule
from experiments.held_out.runs import run
from experiments.held_out.tuning import PROOF_SEED, PROOF_TASKS, settled, tuned
from experiments.held_out.tuning import SEED as TUNING_SEED
from experiments.held_out.tuning import TASKS as TUNING_TASKS
from meta_teleport.evaluation.methods import Method
from meta_teleport.runs.provenance import revision
from meta_teleport.tasks.family import Tasks

PAST = 10
BEYOND = "rule past its horizon"
Made = tuple[Method, Tasks]


@dataclass(frozen=True)
class Entry:
    """One run: ``make()`` gives the method, set for it, and the tasks. ``version`` is the end of its file's name.

    ``multiple``: how many horizons it lasts, 1 where the method is the same at any length; ``seed``: the meta-seed of
    what is learned.
    """

    bench: Bench
    name: str
    version: str
    steps: int
    make: Callable[[], Made]
    multiple: int = 1
    seed: int = 0

    @property
    def path(self) -> Path:
        """The file of its outcome."""
        return self.bench.path(self.name, self.version)

    def measure(self) -> None:
        """Runs it and keeps the outcome."""
        method, tasks = self.make()
        outcome = run(method, tasks, self.steps, self.bench.setting)
        outcome.numbers.update(method=self.name, seed=self.seed, multiple=self.multiple, **revision())
        outcome.save(self.path)


def entries(out: Path, bench: Bench, seeds: int) -> Iterator[Entry]:
    """What the family's rules do, then closed forms, then, where wanted, all other methods."""
    for seed in range(seeds):
        yield from _rules(out, bench, seed)
    yield from _closed_forms(bench)
    if bench.member.methods == "all":
        yield from _contestants(bench)
        if (bench.family, bench.member.name) in PUBLISHED_TASKS:
            steps = max(bench.member.multiples) * bench.setting.horizon
            for seed in range(seeds):
                make = partial(published_on, out, bench, seed)
                yield Entry(bench, PUBLISHED, f"-{seed}", steps, make, seed=seed)


def _rules(out: Path, bench: Bench, seed: int) -> Iterator[Entry]:
    stochastic = bench.setting.stochastic
    for kind in KINDS if bench.member.methods == "all" else KINDS[:1]:
        for multiple in bench.multiples:
            make = partial(rule_on, out, bench, kind, seed, multiple if stochastic else None)
            version, told = f"-{seed}-x{multiple}", multiple if stochastic else 1
            yield Entry(bench, kind, version, bench.steps(multiple), make, told, seed)
    if stochastic and bench.member.seen:
        make = partial(rule_on, out, bench, KINDS[0], seed, None)
        yield Entry(bench, BEYOND, f"-{seed}", bench.steps(PAST), make, PAST, seed)


def _closed_forms(bench: Bench) -> Iterator[Entry]:
    if not bench.setting.stochastic:
        for method in closed_form(bench.sample(1, SEED, "held_out")):
            yield Entry(bench, method.name, "", bench.steps(max(bench.multiples)), partial(_with_tasks, bench, method))


def _contestants(bench: Bench) -> Iterator[Entry]:
    for contestant in contestants(bench.sample(1, SEED, "held_out"), bench.setting):
        for multiple in (m for m in sorted({1, 3, *bench.member.multiples}) if m <= contestant.longest):
            make, steps = partial(contestant_on, bench, contestant, multiple), multiple * bench.setting.horizon
            yield Entry(bench, contestant.name, f"-x{multiple}", steps, make, multiple)


def rule_on(out: Path, bench: Bench, kind: str, seed: int, multiple: int | None) -> Made:
    """One rule of one meta-seed, told that its horizon is as long as the run if a ``multiple`` is given."""
    rule = trained_rule(out, bench.family, kind, seed, bench.smoke)
    rule.backtracking = rule.backtracking or bench.setting.backtracking
    if multiple is not None:
        rule = rule.for_horizon(multiple * bench.setting.horizon)
    return Method(kind, "learned", rule), bench.tasks()


def contestant_on(bench: Bench, contestant: Contestant, multiple: int) -> Made:
    """A method with settings tuned at this length, or, where step sizes fall to zero along it, at one horizon."""
    numbers = ((TUNING_SEED, TUNING_TASKS), (PROOF_SEED, PROOF_TASKS))
    training, proof = (bench.sample(2 if bench.smoke else count, seed, "train") for seed, count in numbers)
    setting, length = bench.setting, 1 if bench.setting.stochastic else multiple
    found = bench.path(contestant.name, f"-x{length}").with_suffix(".json")
    best = settled(contestant, tuned(contestant, training, proof, setting, length * setting.horizon, found))
    tasks = bench.tasks()
    if contestant.limit is not None:
        tasks = tasks.select(torch.arange(min(contestant.limit, tasks.count)))
    return replace(contestant.build(best, tasks, multiple * setting.horizon), name=contestant.name), tasks


def published_on(out: Path, bench: Bench, seed: int) -> Made:
    """LSTM(update, tele) on the same problems in float32."""
    rule, family = published_rule(out, bench.family, bench.member.name, seed, bench.smoke)
    tasks = family.sample(bench.tasks().count, torch.Generator().manual_seed(SEED), "held_out")
    return Method(PUBLISHED, "learned", rule), tasks


def _with_tasks(bench: Bench, method: Method) -> Made:
    return method, bench.tasks()
