"""Does a teleport ever ruin a training? Twelve small problems, 5000 steps, a teleport every 100.

    python -m experiments.safety.run            all; --smoke: seconds, no claim

Every variant runs the same problem from the same weights on the same batches:

    plain              the optimizer alone
    at the start       one teleport to the balanced gauge before the first step, as in the README's example
    balanced           the same every 100 steps
    gradient_norm      searches that raise the gradient norm, held by the bounds that are the default
    random             random elements as long as a search, under the same bounds
    unbounded          searches without any bound: the control that must do harm

What is compared is the mean training loss of the last tenth of the steps, before each step and on a batch not seen
before, as log ratio to the plain optimizer, paired by seed. A run that does not stay finite counts as failed.
"""

import warnings
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import exp, inf, isfinite, log, nan
from typing import Any

import torch

import meta_teleport as mt
from experiments.lab.intervals import student
from experiments.lab.progress import collect
from experiments.lab.script import finish, parser, run
from experiments.lab.tables import interval, titled
from experiments.safety.problems import GRIDS, Problem, problems
from meta_teleport.optimizers.history import HARM, UNDONE, TeleportRecord
from meta_teleport.optimizers.teleported import TeleportedOptimizer
from meta_teleport.tasks.images import load_images

NAME = "safety"
EVERY = 100
WORSE = 1.02
"""The ratio of losses from which on a variant is called worse."""
SIGNS = {"harmful": HARM, "undone": UNDONE}
VERDICTS = ("no worse", "open", "worse")
TUNING_SEED = 1000
SEED_OF_BATCHES = 10_000

Settings = dict[str, Any]
VARIANTS: dict[str, Settings | None] = {
    "plain": None,
    "at the start": {"objective": "balanced", "schedule": [0]},
    "balanced": {"objective": "balanced"},
    "gradient_norm": {"objective": "gradient_norm"},
    "random": {"objective": "random", "size": 1.0},
    "unbounded": {"objective": "gradient_norm", "imbalance": inf, "patience": inf},
}


@dataclass(frozen=True)
class Plan:
    """How many steps, on how many seeds."""

    steps: int = 5000
    seeds: int = 5

    @property
    def last(self) -> int:
        """The steps that the final loss is a mean over."""
        return self.steps // 10


SMOKE = Plan(300, 2)


def trained(problem: Problem, rate: float, settings: Settings | None, plan: Plan, seed: int) -> dict[str, Any]:
    """One training: the final loss, and what became of the teleports."""
    torch.manual_seed(seed)
    model = problem.build()
    batches, others = problem.batches(SEED_OF_BATCHES + seed), problem.batches(2 * SEED_OF_BATCHES + seed)
    optimizer: Any = GRIDS[problem.optimizer][0](model.parameters(), lr=rate)
    if settings is not None:
        symmetry = mt.find_symmetries(model, next(problem.batches(0))[0])
        generator = torch.Generator().manual_seed(seed)
        chosen = {"schedule": EVERY, "loss": problem.loss, "batches": partial(next, others), **settings}
        optimizer = TeleportedOptimizer(optimizer, model, symmetry, generator=generator, **chosen)
    losses = []
    for _ in range(plan.steps):
        optimizer.zero_grad()
        loss = problem.loss(model, next(batches))
        loss.backward()
        losses.append(loss.detach())
        if not isfinite(float(losses[-1])):
            break
        optimizer.step()
        if settings is not None:
            optimizer.report(loss=loss)
    curve = torch.stack(losses)
    final = float(curve[-plan.last :].mean()) if len(curve) == plan.steps else nan
    return {
        "final": final if isfinite(final) else None,
        **fates([] if settings is None else optimizer.teleports),
    }


def fates(records: Sequence[TeleportRecord]) -> dict[str, int]:
    """How many teleports were tried and accepted, after how many of these the loss rose, and how many were undone."""
    signed = {name: sum(sign in record.signs for record in records) for name, sign in SIGNS.items()}
    return {"tried": len(records), "accepted": sum(record.accepted for record in records), **signed}


def tuned(problem: Problem, plan: Plan) -> dict[str, Any]:
    """The step size with which the plain optimizer ends lowest, by a seed that no other part uses."""
    finals = {rate: trained(problem, rate, None, plan, TUNING_SEED)["final"] for rate in GRIDS[problem.optimizer][1]}
    known = {rate: final for rate, final in finals.items() if final is not None}
    return {"rate": min(known, key=known.__getitem__), "finals": {str(rate): final for rate, final in finals.items()}}


def measured(problem: Problem, variant: str, rate: float, plan: Plan) -> dict[str, Any]:
    """A variant on all seeds."""
    return {"runs": [trained(problem, rate, VARIANTS[variant], plan, seed) for seed in range(plan.seeds)]}


def row(name: str, parts: dict[str, Any], variant: str) -> dict[str, Any]:
    """The log ratios of final losses to the plain optimizer, their interval, and the verdict."""
    runs, plain = (parts[f"{name}, {which}"]["runs"] for which in (variant, "plain"))
    pairs = [(r["final"], p["final"]) for r, p in zip(runs, plain, strict=True)]
    ratios = [log(r / p) for r, p in pairs if r is not None and p is not None]
    failed = sum(r is None and p is not None for r, p in pairs)
    middle, low, high = student(ratios) if ratios else (nan, nan, nan)
    worse = failed > 0 or low > log(WORSE)
    verdict = "worse" if worse else "no worse" if high < log(WORSE) else "open"
    counted = {key: sum(r[key] for r in runs) for key in fates([])}
    found = {"problem": name, "variant": variant, "ratios": ratios, "interval": [middle, low, high], "failed": failed}
    return {**found, "verdict": verdict, **counted}


def markdown(rows: list[dict[str, Any]], names: list[str]) -> str:
    """A line per problem, a column per variant: the ratio of final losses, and how many teleports were accepted."""
    cells = {(r["problem"], r["variant"]): cell(r) for r in rows}
    variants = [variant for variant in VARIANTS if variant != "plain"]
    lines = [[name, *(cells[name, variant] for variant in variants)] for name in names]
    counts = [[variant, *(str(count(rows, variant, verdict)) for verdict in VERDICTS)] for variant in variants]
    first = titled("Final training loss over that of the plain optimizer", ["problem", *variants], lines)
    return first + "\n" + titled("Problems by verdict", ["variant", *VERDICTS], counts)


def count(rows: list[dict[str, Any]], variant: str, verdict: str) -> int:
    """On how many problems a variant has this verdict."""
    return sum(row["variant"] == variant and row["verdict"] == verdict for row in rows)


def cell(row: dict[str, Any]) -> str:
    """A ratio with its interval, the verdict, and what became of the teleports."""
    shown = interval((exp(x) for x in row["interval"]), ".3f") if row["ratios"] else "failed"
    failed = f", {row['failed']} failed" if row["failed"] and row["ratios"] else ""
    signed = "".join(f", {row[name]} {name}" for name in SIGNS if row[name])
    return f"{shown}{failed}, {row['verdict']}; {row['accepted']} of {row['tried']}{signed}"


def main() -> None:
    args: Namespace = parser(NAME, __doc__).parse_args()
    plan = SMOKE if args.smoke else Plan()
    warnings.filterwarnings("ignore", "the loss rose after", UserWarning)  # the records have it
    chosen = problems(load_images("digits"))
    key = {"plan": [plan.steps, plan.seeds], "every": EVERY}
    tuning = collect({f"tuning {p.name}": partial(tuned, p, plan) for p in chosen}, args.out / "parts", key)
    rates = {p.name: tuning[f"tuning {p.name}"]["rate"] for p in chosen}
    work = {
        f"{p.name}, {variant}": partial(measured, p, variant, rates[p.name], plan)
        for p in chosen
        for variant in VARIANTS
    }
    parts = collect(work, args.out / "parts", key)
    rows = [row(p.name, parts, variant) for p in chosen for variant in VARIANTS if variant != "plain"]
    content = {"plan": asdict(plan), "tuning": tuning, "rows": rows}
    finish(args, content, markdown(rows, [p.name for p in chosen]))


if __name__ == "__main__":
    run(main)
