"""The pieces of work of held_out.py: meta-trainings, and runs of one method on one member of a family."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from held_out_families import FAMILIES
from held_out_members import Member, Setting
from held_out_methods import Contestant, closed_form, contestants
from held_out_published import NAME as PUBLISHED
from held_out_published import TASKS as PUBLISHED_TASKS
from held_out_published import published_rule
from held_out_rules import FINISHED, KINDS, folder_of, trained
from held_out_runs import run
from held_out_statistics import GOALS
from held_out_tuning import SEED as TUNING_SEED
from held_out_tuning import TASKS as TUNING_TASKS
from held_out_tuning import settled, tuned

from meta_teleport.methods import Method
from meta_teleport.record import revision
from meta_teleport.tasks.family import Split, TaskFamily, Tasks

HELD_OUT_SEED, SMOKE_TASKS, PAST = 0, 3, 10
BEYOND = "rule past its horizon"


@dataclass(frozen=True)
class Job:
    """One piece of work, finished once ``path`` exists. Of a family's measurements what is learned comes ``first``."""

    label: str
    path: Path
    work: Callable[[], object]
    first: bool = False


@dataclass(frozen=True)
class Bench:
    """One member of a family and where its results are kept."""

    family: str
    member: Member
    folder: Path
    smoke: bool

    @property
    def setting(self) -> Setting:
        """Of the family; with --smoke a short one."""
        setting = FAMILIES[self.family]
        return replace(setting, horizon=max(4, setting.horizon // 50), measured=2) if self.smoke else setting

    def tasks(self) -> Tasks:
        """The held-out tasks."""
        count = min(SMOKE_TASKS, self.member.count) if self.smoke else self.member.count
        return self.sample(count, HELD_OUT_SEED, "held_out")

    def sample(self, count: int, seed: int, split: Split) -> Tasks:
        """Fresh tasks."""
        return made(self.member).sample(count, torch.Generator().manual_seed(seed), split, self.member.dtype)

    def path(self, method: str, version: str = "") -> Path:
        """The file of one method; a ``version`` is a meta-seed, a multiple of the horizon, or both."""
        slug = "".join(c if c.isalnum() else "-" for c in method.lower())
        return self.folder / f"{slug}{version}.safetensors"

    def steps(self, multiple: int) -> int:
        """How long a rule runs: so many horizons, and where the loss is measured 30 steps at least."""
        return max(multiple * self.setting.horizon, 0 if self.setting.stochastic else max(GOALS))

    @property
    def multiples(self) -> tuple[int, ...]:
        """How many horizons the separate runs of one method last: where step sizes fall, each length is its own run."""
        return self.member.multiples if self.setting.stochastic else (max(self.member.multiples),)


@cache
def made(member: Member) -> TaskFamily:
    """The family of a member, made once: some are pre-trained."""
    return member.make()


def bench_of(out: Path, family: str, member: Member, smoke: bool) -> Bench:
    """The bench of one member."""
    slug = "".join(c if c.isalnum() else "-" for c in member.name.lower())
    return Bench(family, member, out / family / slug, smoke)


def training_jobs(out: Path, family: str, seeds: int, smoke: bool) -> Iterator[Job]:
    """The meta-trainings of one family."""
    for seed in range(seeds):
        for kind in KINDS:
            path = folder_of(out, family, kind, seed) / FINISHED
            work = partial(trained, out, family, kind, seed, smoke)
            yield Job(f"{family}: meta-training, {kind}, seed {seed}", path, work)


def measuring_jobs(out: Path, bench: Bench, seeds: int) -> Iterator[Job]:
    """All runs on one member: what the family's rules do, then closed forms, then, where wanted, all other methods."""
    name = f"{bench.family}, {bench.member.name}"
    for seed in range(seeds):
        for kind in KINDS if bench.member.methods == "all" else KINDS[:1]:
            for multiple in bench.multiples:
                path = bench.path(kind, f"-{seed}-x{multiple}")
                work = partial(run_rule, out, bench, kind, seed, multiple, True, path)
                yield Job(f"{name}: {kind}, seed {seed}, {multiple} horizons", path, work, kind == KINDS[0])
        if bench.setting.stochastic and bench.member.seen:
            path = bench.path(BEYOND, f"-{seed}")
            work = partial(run_rule, out, bench, "rule", seed, PAST, False, path)
            yield Job(f"{name}: rule past its horizon, seed {seed}", path, work)
    tasks = bench.sample(1, HELD_OUT_SEED, "held_out")
    steps = bench.steps(max(bench.multiples))
    for method in closed_form(tasks) if not bench.setting.stochastic else ():
        path = bench.path(method.name)
        yield Job(f"{name}: {method.name}", path, partial(run_control, bench, method, steps, path))
    if bench.member.methods != "all":
        return
    for contestant in contestants(tasks, bench.setting):
        for multiple in (m for m in sorted({1, 3, *bench.member.multiples}) if m <= contestant.longest):
            path = bench.path(contestant.name, f"-x{multiple}")
            work = partial(run_contestant, bench, contestant, multiple, path)
            yield Job(f"{name}: {contestant.name}, {multiple} horizons", path, work)
    for seed in range(seeds) if (bench.family, bench.member.name) in PUBLISHED_TASKS else ():
        path = bench.path(PUBLISHED, f"-{seed}")
        yield Job(f"{name}: {PUBLISHED}, seed {seed}", path, partial(run_published, out, bench, seed, path))


def run_rule(out: Path, bench: Bench, kind: str, seed: int, multiple: int, stretched: bool, path: Path) -> None:
    """One rule of one meta-seed; ``stretched``: told that its horizon is as long as the run."""
    rule, _ = trained(out, bench.family, kind, seed, bench.smoke)
    rule.backtracking = rule.backtracking or bench.setting.backtracking
    if stretched and bench.setting.stochastic:
        rule = rule.lasting(multiple * bench.setting.horizon)
    steps = bench.steps(multiple)
    method = Method(kind if stretched else BEYOND, "learned", rule)
    run_method(bench, method, bench.tasks(), steps, path, seed, multiple if bench.setting.stochastic else 1)


def run_contestant(bench: Bench, contestant: Contestant, multiple: int, path: Path) -> None:
    """A method with settings tuned at this length, or, where step sizes fall to zero along it, at one horizon."""
    count = 2 if bench.smoke else TUNING_TASKS
    training = bench.sample(count, TUNING_SEED, "train")
    setting, length = bench.setting, 1 if bench.setting.stochastic else multiple
    found = bench.path(contestant.name, f"-x{length}").with_suffix(".json")
    best = settled(contestant, tuned(contestant, training, setting, length * setting.horizon, found))
    steps = multiple * setting.horizon
    tasks = bench.tasks()
    if contestant.limit is not None:
        tasks = tasks.select(torch.arange(min(contestant.limit, tasks.count)))
    method = replace(contestant.build(best, tasks, steps), name=contestant.name)
    run_method(bench, method, tasks, steps, path, multiple=multiple)


def run_control(bench: Bench, method: Method, steps: int, path: Path) -> None:
    """A method in closed form."""
    run_method(bench, method, bench.tasks(), steps, path)


def run_published(out: Path, bench: Bench, seed: int, path: Path) -> None:
    """LSTM(update, tele) on the same problems in float32."""
    rule, family = published_rule(out, bench.family, bench.member.name, seed, bench.smoke)
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    tasks = family.sample(bench.tasks().count, generator, "held_out")
    steps = max(bench.member.multiples) * bench.setting.horizon
    run_method(bench, Method(PUBLISHED, "learned", rule), tasks, steps, path, seed)


def run_method(
    bench: Bench, method: Method, tasks: Tasks, steps: int, path: Path, seed: int = 0, multiple: int = 1
) -> None:
    """Measures a method and keeps the outcome under its name, meta-seed and length."""
    outcome = run(method, tasks, steps, bench.setting)
    outcome.numbers.update(method=method.name, seed=seed, multiple=multiple, **revision())
    outcome.save(path)
