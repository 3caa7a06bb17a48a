"""What held_out.py set out to reach, beside what it has measured."""

from collections.abc import Iterator
from typing import Any

import torch

from experiments.held_out.published import NAME as PUBLISHED
from experiments.held_out.recipes import INTERPOLATING
from meta_teleport.teleportation.acceptance import rounding

Goal = dict[str, str]

LEAD = INTERPOLATING.arguments["warmup_teleports"]
ROUNDING = {str(dtype)[6:]: LEAD * rounding(dtype) for dtype in (torch.float64, torch.float32)}
DEEP_LIMIT, DEEP_STEP = 1e-6, 30
LIMITS = {"float64": {10: 1e-12, 20: 1e-20}, "float32": {10: 1e-6, 20: 1e-8}}
CONDITION_RATIO = 2
TWINS = ("no teleport", "random teleport")
PRECONDITIONED = {"Shampoo", "scaled GD"}
NOT_FIRST_ORDER = (PUBLISHED, "hand-written teleporter", "last layer solved", "L-BFGS", "Levenberg-Marquardt")


def goals(content: dict[str, Any]) -> list[Goal]:
    """One entry ``claim, measured, verdict`` per goal that the family has."""
    found = list(_interpolation(content)) if content["family"] in ("f1", "f2") else list(_intervals(content))
    return [*found, *_conditions(content), *_long_runs(content)]


def _interpolation(content: dict[str, Any]) -> Iterator[Goal]:
    rules = {name: (row, row["methods"]["rule"]) for name, row in content["members"].items()}
    for dtype, limits in LIMITS.items():
        flat = {n: m for n, (row, m) in rules.items() if row["dtype"] == dtype and "depth" not in n.split(",")[-1]}
        flat = {n: m for n, m in flat.items() if ", depth 2" in n or "depth" not in n}
        for step, limit in limits.items():
            yield _worst(f"depth 2, {dtype}: median below {limit:g} at step {step}", flat, step, limit)
    deep = {n: m for n, (row, m) in rules.items() if row["dtype"] == "float64" and "depth" in n and "depth 2" not in n}
    yield _worst(f"depth 3 to 6: median below {DEEP_LIMIT:g} at step {DEEP_STEP}", deep, DEEP_STEP, DEEP_LIMIT)
    highest = {name: method["highest"] for name, (_, method) in rules.items()}
    above = [f"{n}: {m['highest']:.5g}" for n, (row, m) in rules.items() if m["highest"] > 1 + ROUNDING[row["dtype"]]]
    most = max(highest.values(), default=0.0)
    yield {
        "claim": f"no task above its initial loss at any step, but for the drift that the {LEAD} teleports before the "
        f"first update may have ({ROUNDING['float64']:.2g} of it, in float32 {ROUNDING['float32']:.2g})",
        "measured": f"largest ratio {most:.9g}" + (f"; above: {', '.join(above)}" if above else ""),
        "verdict": "does not hold" if above else "holds",
    }
    runs = content["meta_training"]["rule"]
    wall, busy = (max((run[key] for run in runs), default=0.0) for key in ("seconds", "cpu_seconds"))
    yield {
        "claim": "meta-training under 60 s",
        "measured": f"at most {busy:.0f} s of one core, {wall:.0f} s on the clock",
        "verdict": "holds" if wall < 60 else "holds where the core is free" if busy < 60 else "does not hold",
    }


def _worst(claim: str, methods: dict[str, Any], step: int, limit: float) -> Goal:
    """The goal for the worst meta-seed on the worst member."""
    if not methods:
        return {"claim": claim, "measured": "not measured", "verdict": ""}
    missed = {name: m["worst_seed_at"][step] for name, m in methods.items() if not m["worst_seed_at"][step] < limit}
    name = max(methods, key=lambda n: methods[n]["worst_seed_at"][step])
    measured = f"worst meta-seed {methods[name]['worst_seed_at'][step]:.1e} ({name})"
    held = len(methods) - len(missed)
    listed = "; missed: " + ", ".join(f"{n} {value:.1e}" for n, value in missed.items()) if missed else ""
    verdict = "holds" if not missed else f"holds for {held} of {len(methods)} sizes"
    return {"claim": claim, "measured": measured + listed, "verdict": verdict}


def _intervals(content: dict[str, Any]) -> Iterator[Goal]:
    """The rule against each group of methods: a member is won if all intervals lie below zero, lost if one or more lie
    above it. At equal time nothing is won against a method whose runs end earlier."""
    names = {name for row in content["members"].values() for name in row["comparisons"]}
    gauges = {name for name in names if "gauge" in name or "axes" in name}
    groups = {
        "the twin without teleports": {"no teleport"},
        "the twin with random teleports": {"random teleport"},
        "every first-order method": names - gauges - PRECONDITIONED - set(TWINS) - set(NOT_FIRST_ORDER),
        "Shampoo and scaled GD, where they run": PRECONDITIONED,
        "every hand-written gauge": gauges,
    }
    for title, group in groups.items():
        for part in ("equal_steps", "equal_time"):
            won, lost, open_ = _count(content, group, part)
            if won or lost or open_:
                yield {
                    "claim": f"better than {title}, {part.replace('_', ' ')}",
                    "measured": f"won on {len(won)} members, lost on {len(lost)}, undecided on {len(open_)}"
                    + (f" (lost: {'; '.join(lost)})" if lost else ""),
                    "verdict": "holds" if not lost and not open_ else "does not hold" if not won else "holds in part",
                }


def _count(content: dict[str, Any], group: set[str], part: str) -> tuple[list[str], list[str], list[str]]:
    won: list[str] = []
    lost: list[str] = []
    other: list[str] = []
    for name, row in content["members"].items():
        found = [c[part] for method, c in row["comparisons"].items() if method in group]
        below = all(c["ci95"][1] < 0 and c.get("method_ran_as_long", True) for c in found)
        if found:
            side = won if below else lost if any(c["ci95"][0] > 0 for c in found) else other
            side.append(name)
    return won, lost, other


def _conditions(content: dict[str, Any]) -> Iterator[Goal]:
    """Per size, the steps to 1e-6 of the initial loss at the worst condition number over those at the best one."""
    sizes: dict[str, dict[str, int | None]] = {}
    for name, row in content["members"].items():
        size, _, condition = name.partition(", condition ")
        if condition and "steps_to_solved" in row["methods"]["rule"]:
            sizes.setdefault(size, {})[condition] = row["methods"]["rule"]["steps_to_solved"]
    for size, steps in sizes.items():
        found = [count for count in steps.values() if count is not None]
        holds = len(found) == len(steps) and max(found) <= CONDITION_RATIO * min(found)
        yield {
            "claim": f"{size}: steps to 1e-6 of the initial loss within {CONDITION_RATIO}x at all condition numbers",
            "measured": ", ".join(f"condition {c}: {count or 'not reached'}" for c, count in steps.items()),
            "verdict": "holds" if holds else "does not hold",
        }


def _long_runs(content: dict[str, Any]) -> Iterator[Goal]:
    """At ten horizons no higher than at one."""
    ratios = {}
    for name, row in content["members"].items():
        medians = row.get("past_the_horizon") or row["methods"]["rule"]["median"]
        if 10 in medians:
            ratios[name] = (medians[10] - medians[1]) / row["methods"]["rule"]["start"]
    if ratios:
        worst = max(ratios, key=lambda name: ratios[name])
        yield {
            "claim": "median at 10 horizons above that at 1 by no more than 1e-20 of the initial one",
            "measured": f"largest change {ratios[worst]:+.1e} of it ({worst})",
            "verdict": "holds" if ratios[worst] <= 1e-20 else "does not hold",
        }
