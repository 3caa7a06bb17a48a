"""Results of learning_to_teleport as Markdown tables."""

from typing import Any

STEPS = ("1", "10", "30", "100", "300", "1000")


def markdown(results: dict[str, Any]) -> str:
    """Two tables: medians and 90 % quantiles of every method, and the comparisons with their intervals."""
    return "\n".join([*_losses(results["methods"]), "", *_comparisons(results["comparisons"]), ""])


def _losses(methods: dict[str, Any]) -> list[str]:
    lines = [
        f"| method | {' | '.join(f'step {step}' for step in STEPS)} | s / step | drift | undone | failed |",
        f"|---|{'---|' * (len(STEPS) + 4)}",
    ]
    for name, method in methods.items():
        medians, high = method["median"], method["q90"]
        cells = [f"{medians[s]:.3g} ({high[s]:.3g})" if s in medians else "" for s in STEPS]
        runs = method["runs"]
        seconds = sum(run["seconds_per_step"] for run in runs) / len(runs)
        drift = max(run["drift_max"] for run in runs)
        teleports = sum(run["teleports"] for run in runs)
        undone = f"{sum(run['teleports_undone'] for run in runs) / teleports:.2%}" if teleports else "-"
        failed = sum(run["failed"] for run in runs)
        shown = f"{drift:.0e}" if teleports else "-"
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.1e} | {shown} | {undone} | {failed} |")
    return lines


def _comparisons(comparisons: list[dict[str, Any]]) -> list[str]:
    lines = ["| a | b | step | log10(a / b), 95 % interval | a wins |", "|---|---|---|---|---|"]
    for row in comparisons:
        low, high = row["ci95"]
        ratio = f"{row['log10_ratio']:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(f"| {row['a']} | {row['b']} | {row['step']} | {ratio} | {row['win_rate']:.0%} |")
    return lines
