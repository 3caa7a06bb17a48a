"""Results of learning_to_teleport as Markdown tables."""

from typing import Any

from experiments.lab.tables import interval, table

STEPS = ("1", "10", "30", "100", "300", "1000")


def markdown(results: dict[str, Any]) -> str:
    """Two tables: medians and 90 % quantiles of every method, and the comparisons with their intervals."""
    return f"{_losses(results['methods'])}\n\n{_comparisons(results['comparisons'])}\n"


def _losses(methods: dict[str, Any]) -> str:
    lines = []
    for name, method in methods.items():
        medians, high = method["median"], method["q90"]
        cells = [f"{medians[s]:.3g} ({high[s]:.3g})" if s in medians else "" for s in STEPS]
        runs = method["runs"]
        seconds = sum(run["seconds_per_step"] for run in runs) / len(runs)
        drift = max(run["drift_max"] for run in runs)
        teleports = sum(run["teleports"] for run in runs)
        undone = f"{sum(run['teleports_undone'] for run in runs) / teleports:.2%}" if teleports else "-"
        failed = f"{sum(run['failed'] for run in runs)}"
        shown = f"{drift:.0e}" if teleports else "-"
        lines.append([name, *cells, f"{seconds:.1e}", shown, undone, failed])
    return table(["method", *(f"step {step}" for step in STEPS), "s / step", "drift", "undone", "failed"], lines)


def _comparisons(comparisons: list[dict[str, Any]]) -> str:
    lines = [
        [row["a"], row["b"], f"{row['step']}", interval((row["log10_ratio"], *row["ci95"])), f"{row['win_rate']:.0%}"]
        for row in comparisons
    ]
    return table(["a", "b", "step", "log10(a / b), 95 % interval", "a wins"], lines)
