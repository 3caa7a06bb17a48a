"""Evaluations as tables for people."""

from rich.table import Table

from meta_teleport.evaluation.evaluation import KINDS, Evaluation, comparison_steps
from meta_teleport.evaluation.verdict import TWINS, Verdict

HEADINGS = {"learned": "learned", "control": "controls", "teleport-baseline": "with teleports", "baseline": "baselines"}


def tables(evaluation: Evaluation) -> list[Table]:
    """What every method reached, and the verdict where there is a rule."""
    return [methods(evaluation), *([verdict(evaluation)] if evaluation.verdicts else [])]


def methods(evaluation: Evaluation) -> Table:
    """One row per method, learned first, kind by kind; losses are medians over the tasks."""
    at = comparison_steps(evaluation.horizon, evaluation.steps)
    title = f"{evaluation.family}: {evaluation.tasks} held-out tasks, horizon {evaluation.horizon}"
    shown = Table("method", title=title, title_justify="left")
    for name in (*(f"step {step}" for step in at), "failed", "s / step", "drift", "output drift"):
        shown.add_column(name, justify="right", no_wrap=True)
    for kind in KINDS:
        names = [name for name, method in evaluation.methods.items() if method.kind == kind]
        if names:
            shown.add_row(HEADINGS[kind], style="bold")
        for name in names:
            measured = evaluation.measurements[name]
            medians = [f"{float(measured.losses[step].quantile(0.5)):.3g}" for step in at]
            seconds = f"{float(measured.seconds[-1]) / evaluation.steps:.1e}"
            moved = measured.teleports > 0
            drifts = [f"{d:.0e}" if moved else "-" for d in (measured.drift_max, measured.output_drift_max)]
            shown.add_row(f"  {name}", *medians, str(measured.failed), seconds, *drifts)
    return shown


def verdict(evaluation: Evaluation) -> Table:
    """One row per step and method that the rule is held against."""
    learned = next(name for name, method in evaluation.methods.items() if method.kind == "learned")
    title = f"{learned}: its loss as a multiple of others', paired by task, with the 95 % t interval over tasks"
    shown = Table(title=title, title_justify="left")
    shown.add_column("step", justify="right", no_wrap=True)
    shown.add_column("against")
    shown.add_column("verdict", no_wrap=True)
    shown.add_column("multiple", no_wrap=True)
    found = evaluation.verdicts
    for before, row, after in zip((None, *found), found, (*found[1:], None), strict=False):
        step = "" if before is not None and before.step == row.step else str(row.step)
        ends = "" if row.ci95 is None else f" [{row.ci95[0]:.3g}, {row.ci95[1]:.3g}]"
        last = after is None or after.step != row.step
        shown.add_row(step, _named(row), row.word, f"{row.ratio:.3g}{ends}", end_section=last)
    return shown


def _named(row: Verdict) -> str:
    if row.role in TWINS:
        return row.role
    return f"{row.against} ({row.role})" if row.role == "best baseline" else row.against
