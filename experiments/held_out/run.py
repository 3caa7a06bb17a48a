"""The equivariant rule on held-out tasks, at sizes seen and not seen in meta-training, against what is tuned by hand.

    python -m experiments.held_out.run f1 f2               these families: meta-train, measure, clock, report
    python -m experiments.held_out.run --parts report      tables and figures of what is finished
    python -m experiments.held_out.run --smoke             all families in minutes, few tasks of their first members

Every (family, member, method, meta-seed) that is finished is a file under ``--out``; the same command goes on after a
stop. Families and recipes: ``families.py``, ``recipes.py``; methods: ``methods.py``.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from experiments.held_out.bench import Bench, bench_of
from experiments.held_out.clock import clock
from experiments.held_out.entries import entries
from experiments.held_out.families import FAMILIES
from experiments.held_out.report import report
from experiments.held_out.rules import KINDS, folder_of, trained_rule
from experiments.lab.meta_training import FINISHED
from experiments.lab.progress import Job, work_through
from experiments.lab.script import parser, run

PARTS = ("train", "measure", "clock", "report")
SMOKE_MEMBERS = 2


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


def main() -> None:
    made = parser("held_out", __doc__, "a few tasks and meta-steps; no claim")
    made.add_argument("families", nargs="*", metavar="family", help=f"default: all of {', '.join(FAMILIES)}")
    made.add_argument("--meta-seeds", type=int, default=5)
    made.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    args = made.parse_args()
    families, parts = args.families or list(FAMILIES), args.parts.split(",")
    for given, known in ((families, FAMILIES), (parts, PARTS)):
        for name in given:
            if name not in known:
                made.error(f"unknown '{name}': choose from {', '.join(known)}")
    for family in families:
        if "train" in parts:
            work_through(list(training_jobs(args.out, family, args.meta_seeds, args.smoke)))
        members = FAMILIES[family].members[: SMOKE_MEMBERS if args.smoke else None]
        benches = [bench_of(args.out, family, member, args.smoke) for member in members]
        if "measure" in parts:
            work_through(list(measuring_jobs(args.out, benches, args.meta_seeds)))
        if "clock" in parts:
            work_through([job for bench in benches for job in clock_jobs(args.out, bench)])
        if "report" in parts:
            print(report(args.out, family, args.meta_seeds, args.smoke))


if __name__ == "__main__":
    run(main)
