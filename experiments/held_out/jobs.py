"""The pieces of work of held_out.py: meta-trainings, runs, and the clock, each finished once its file exists."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from experiments.held_out.bench import Bench
from experiments.held_out.clock import clock
from experiments.held_out.entries import entries
from experiments.held_out.rules import KINDS, folder_of, trained_rule
from experiments.lab.meta_training import FINISHED
from experiments.lab.progress import Job


def training_jobs(out: Path, family: str, seeds: int, smoke: bool) -> Iterator[Job]:
    """The meta-trainings of one family."""
    for seed in range(seeds):
        for kind in KINDS:
            path = folder_of(out, family, kind, seed) / FINISHED
            work = partial(trained_rule, out, family, kind, seed, smoke)
            yield Job(f"{family}: meta-training, {kind}, seed {seed}", path, work)


def measuring_jobs(out: Path, benches: Sequence[Bench], seeds: int) -> Iterator[Job]:
    """All runs on some members, those of the rule first."""
    runs = [entry for bench in benches for entry in entries(out, bench, seeds)]
    for entry in sorted(runs, key=lambda entry: entry.name != KINDS[0]):
        yield Job(f"{entry.bench.label}: {entry.name}{entry.version}", entry.path, entry.measure)


def clock_jobs(out: Path, bench: Bench) -> Iterator[Job]:
    """The clock of one member, where all methods run."""
    if bench.member.methods == "all":
        yield Job(f"{bench.label}: clock", bench.clock, partial(clock, out, bench))
