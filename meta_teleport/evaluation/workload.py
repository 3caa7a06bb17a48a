"""How much of an evaluation is done, so that the time left can be told before most of it has begun."""

from meta_teleport.evaluation.methods import BASELINES, TELEPORT_BASELINES
from meta_teleport.evaluation.tuning import TASKS, Report

NAME, TUNING = "evaluation", "tuning"
OVERHEAD = 128
"""A step costs as much beside its tasks as so many of them do; like the factors below from runs of ``Regression``."""
PLAIN, ASCENT, RANDOM, METHOD = 1.5, 15.0, 3.0, 4.0
"""What tuning a row costs, in runs of its whole grid: without teleports, with ascents (some ten gradients each), with
random ones; and what a step of the average method costs, in steps of gradient descent."""


class Workload:
    """Passes reports on and after each adds ``report("evaluation", done, total)``, in steps times tasks of gradient
    descent. ``methods`` is how many there will be; it may be set again when that is known."""

    def __init__(self, report: Report, horizon: int, steps: int, tasks: int, teleports: bool, methods: int) -> None:
        self.report, self.methods, self.method = report, methods, METHOD * steps * (OVERHEAD + tasks)
        self.rows = _rows(horizon, teleports)
        self.tuned, self.finished = 0, 0

    def __call__(self, name: str, done: int, total: int) -> None:
        """What tuning and measurement report to."""
        self.report(name, done, total)
        part = 0.0
        if name == TUNING:
            self.tuned = done
        else:
            self.rows = self.rows[: self.tuned]  # without a report, what was tuned has been read from a file
            self.finished += done == total
            part = 0.0 if done == total else done / total
        finished = sum(self.rows[: self.tuned]) + (self.finished + part) * self.method
        self.report(NAME, round(finished), round(sum(self.rows) + self.methods * self.method))


def _rows(horizon: int, teleports: bool) -> list[float]:
    """The work of tuning, row by row in its order."""
    plain, extra = [], []
    for entry in BASELINES.values():
        points = 1
        for grid in entry.grids.values():
            points *= len(grid)
        if entry.grids:
            plain.append(PLAIN * horizon * (OVERHEAD + points * TASKS))
        if entry.teleports and teleports:
            extra += [factor * horizon * (OVERHEAD + 8 * TASKS) for factor in (ASCENT, RANDOM)]
    return plain + extra


def expected(teleports: bool, controls: int, rule: bool) -> int:
    """How many methods there will be, before it is known whether the rule teleports."""
    return len(BASELINES) + controls + rule + teleports * (len(TELEPORT_BASELINES) + 2 * rule)
