"""A rule against tuned baselines and controls on held-out tasks, paired by task.

Every method gets the same tasks and the same number of steps; one step is one gradient evaluation. The rule's
controls, the teleport-augmented optimizers and the plain ones are listed in :mod:`controls` and :mod:`methods`;
how they are tuned stands in :mod:`tuning`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from meta_teleport.errors import UserError
from meta_teleport.evaluation.controls import closed_form_controls, element_controls
from meta_teleport.evaluation.measurement import Measurement, Report, measure
from meta_teleport.evaluation.methods import BASELINES, TELEPORT_BASELINES, Method, Settings, baseline
from meta_teleport.evaluation.statistics import Comparison, compare, curves, speed_up
from meta_teleport.evaluation.tuning import fingerprint, tune
from meta_teleport.evaluation.verdict import Verdict, verdicts
from meta_teleport.evaluation.workload import Workload, expected
from meta_teleport.registry import class_path
from meta_teleport.rules.least_loss import require_not_negative
from meta_teleport.rules.rule import Rule
from meta_teleport.tasks.family import TaskFamily, Tasks

SCHEMA = 2
TASKS = 256
MULTIPLES = (1, 3, 10)
KINDS = ("learned", "control", "teleport-baseline", "baseline")


@dataclass(frozen=True)
class Evaluation:
    """All methods on the same held-out tasks.

    ``methods`` and ``measurements`` share their names; ``horizon`` is the number of steps the rule was trained for,
    and baselines were tuned for. ``comparisons`` holds the rule against every other method at 1, 3 and 10 horizons and
    at the last step, ``verdicts`` against those that matter. ``fingerprint`` is the family's class with a digest of
    what it samples, so that two members of a family can be told apart.
    """

    family: str
    tasks: int
    steps: int
    horizon: int
    methods: dict[str, Method]
    measurements: dict[str, Measurement]
    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    seed: int
    dtype: str
    device: str
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """The evaluation as plain JSON values, schema 2: no infinities and no NaN."""
        return {
            "schema": SCHEMA,
            "family": self.family,
            "tasks": self.tasks,
            "steps": self.steps,
            "horizon": self.horizon,
            "seed": self.seed,
            "dtype": self.dtype,
            "device": self.device,
            "fingerprint": self.fingerprint,
            "methods": {name: self._method(name) for name in self.methods},
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
        }

    def _method(self, name: str) -> dict[str, Any]:
        method, measured = self.methods[name], self.measurements[name]
        return {
            "kind": method.kind,
            "settings": method.settings,
            **curves(measured.losses),
            "seconds": measured.seconds.tolist(),
            "drift_max": measured.drift_max,
            "output_drift_max": measured.output_drift_max,
            "teleports": measured.teleports * self.tasks,
            "teleports_undone": measured.rejected,
            "failed": measured.failed,
            **speed_up(measured.losses, self.measurements["adam"].losses, min(self.horizon, self.steps)),
        }


def evaluate(
    rule: Rule | None,
    family: TaskFamily,
    *,
    horizon: int,
    tasks: int = TASKS,
    steps: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    folder: str | Path | None = None,
    label: str | None = None,
    report: Report | None = None,
) -> Evaluation:
    """Runs a rule and everything it has to be compared with on held-out tasks of a family.

    Args:
        rule: The rule; None runs the baselines and closed-form controls alone, without comparisons.
        family: Where the tasks come from: held-out ones to evaluate on, training ones to tune the baselines on.
        horizon: Steps the rule was trained for; the baselines are tuned for as many.
        tasks: Number of held-out tasks.
        steps: Steps to run, 10 horizons if not given.
        seed: Draws the held-out tasks, the random elements and the bootstrap resamples.
        dtype: float32 or float64.
        device: Where everything runs.
        folder: Where the tuned settings are kept (``tuning.json``) and found again; tuned anew if not given.
        label: Name of the rule in the result; the rule's class in kebab-case if not given.
        report: Called as ``report(method, steps done, steps)`` while things run; ``tuning`` counts rows instead, and
            ``evaluation``, after each of them, how much of all work is done.

    Raises ``UserError`` for counts below 1 and for a label that is the name of another method.
    """
    if horizon < 1 or tasks < 1 or (steps is not None and steps < 1):
        raise UserError(f"horizon {horizon}, tasks {tasks} and steps {steps} must all be at least 1")
    label = _label(label, rule)
    steps = steps or MULTIPLES[-1] * horizon
    batch = family.sample(tasks, torch.Generator().manual_seed(seed), "held_out", dtype, device)
    _require_comparable(batch)
    if report is not None:
        sites, closed = bool(batch.symmetry.sites), len(closed_form_controls(batch))
        report = Workload(report, horizon, steps, tasks, sites, expected(sites, closed, rule is not None))
    tuned = tune(family, horizon, dtype, device, folder, report)
    methods, measured = {}, {}
    if rule is not None:
        method = Method(label, "learned", rule, _describe(rule))
        methods[label], measured[label] = method, measure(method, batch, steps, report)
    teleports = rule is not None and measured[label].teleports > 0
    others = list(_others(rule if teleports else None, label, tuned, batch, seed))
    if isinstance(report, Workload):
        report.methods = len(methods) + len(others)
    for method in others:
        methods[method.name], measured[method.name] = method, measure(method, batch, steps, report)
    return Evaluation(
        _kebab(type(family).__name__),
        tasks,
        steps,
        horizon,
        methods,
        measured,
        tuple(_comparisons(label, measured, horizon, steps, seed)) if rule is not None else (),
        tuple(verdicts(label, methods, measured, comparison_steps(horizon, steps))) if rule is not None else (),
        seed,
        str(dtype).removeprefix("torch."),
        str(device),
        fingerprint(family),
    )


def comparison_steps(horizon: int, steps: int) -> list[int]:
    """1, 3 and 10 horizons as far as they were run, and the last step."""
    return sorted({steps, *(m * horizon for m in MULTIPLES if m * horizon <= steps)})


def _require_comparable(batch: Tasks) -> None:
    """Raises ``UserError`` if no task has a finite first loss, or one has a negative one: ratios are compared."""
    step = torch.zeros(batch.count, dtype=torch.long, device=next(iter(batch.params.values())).device)
    losses = batch.loss(batch.params, step).detach()
    if not bool(losses.isfinite().any()):
        raise UserError("no held-out task has a finite loss at its start: check the data and the loss of the family")
    require_not_negative(losses, losses, "an evaluation takes", "add a constant to the loss of the family")


def _others(rule: Rule | None, label: str, tuned: dict[str, Settings], batch: Tasks, seed: int) -> Iterator[Method]:
    """Every method but the rule itself, each with a generator of its own."""

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    if rule is not None:
        yield from element_controls(rule, label, generator())
    yield from closed_form_controls(batch)
    for name in (*(name for name in TELEPORT_BASELINES if name in tuned), *BASELINES):
        yield baseline(name, tuned.get(name, {}), generator())


def _comparisons(
    label: str, measured: dict[str, Measurement], horizon: int, steps: int, seed: int
) -> Iterator[Comparison]:
    generator = torch.Generator().manual_seed(seed)
    losses = {name: m.losses for name, m in measured.items()}
    for other in losses:
        for step in comparison_steps(horizon, steps):
            if other != label:
                yield compare(label, other, losses, step, generator)


def _label(label: str | None, rule: Rule | None) -> str:
    taken = {"whitening", "last-layer-solve", *BASELINES, *TELEPORT_BASELINES}
    if label in taken:
        raise UserError(f"label '{label}' is the name of another method of the evaluation: choose a different one")
    own = _kebab(type(rule).__name__)
    return label or (f"{own}-rule" if own in taken else own)


def _describe(rule: Rule) -> Settings:
    count = sum(p.numel() for p in rule.parameters())
    return {"rule": class_path(type(rule)), "meta_parameters": count}


def _kebab(name: str) -> str:
    """LSTMUpdateTele -> lstm-update-tele."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()
