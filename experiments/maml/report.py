"""Intervals, tables and figure of maml.py."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.lab.intervals import student
from experiments.lab.tables import interval, table

WORST = 10.0
PLAIN = "MAML"
EVALUATION_ONLY = " at evaluation only"
LOWEST_ACCURACY = 25
COLOURS = {
    "MAML": "#000000",
    "MAML, balanced": "#009E73",
    "MAML, gradient norm": "#0072B2",
    "MAML, random": "#999999",
    "MAML, gradient norm, far": "#56B4E9",
    "MAML, random, far": "#CCCCCC",
    "LSTM(update, tele)": "#D55E00",
    "gradient descent, no meta-training": "#CC79A7",
}
RULE = "LSTM(update, tele)"


def summary(curves: dict[str, tuple[Tensor, Tensor]], settings: dict[str, dict[str, Any]], step: int) -> dict[str, Any]:
    """Methods and comparisons as plain JSON values, from loss and accuracy ``(steps + 1, seeds, tasks)``.

    Differences are paired by meta-seed and task, after ``step`` and after all steps; intervals are over meta-seeds, as
    the tasks of one are no more than repeated measurements of one meta-trained run. A loss that is not finite or above
    10 counts as 10.
    """
    curves = {name: (_bounded(loss), accuracy) for name, (loss, accuracy) in curves.items()}
    methods = {
        name: {
            **settings[name],
            "loss": [list(student(row.mean(-1))) for row in loss.double()],
            "accuracy": [list(student(row.mean(-1))) for row in accuracy.double()],
        }
        for name, (loss, accuracy) in curves.items()
    }
    compared = []
    for a, b in _pairs(list(curves)):
        for at in (step, len(curves[a][0]) - 1):
            loss, accuracy = (
                list(student((x[at] - y[at]).double().mean(-1))) for x, y in zip(curves[a], curves[b], strict=True)
            )
            compared.append({"a": a, "b": b, "step": at, "loss": loss, "accuracy": accuracy})
    return {"methods": methods, "comparisons": compared}


def _bounded(loss: Tensor) -> Tensor:
    return loss.nan_to_num(WORST, WORST, WORST).clamp(max=WORST)


def _pairs(names: list[str]) -> list[tuple[str, str]]:
    """Everything against MAML, searched teleports against random ones of their size, the rule against its controls."""
    pairs = [(name, PLAIN) for name in names if name != PLAIN]
    pairs += [
        (name, other) for name in names if (other := name.replace("gradient norm", "random")) != name and other in names
    ]
    return pairs + [(RULE, name) for name in names if name.startswith("LSTM") and name != RULE]


def markdown(results: dict[str, Any], step: int) -> str:
    """Per data set the table of all methods, and that of the comparisons."""
    parts = []
    for data, found in results.items():
        header = ["method", "step size", "growth of gradient norm^2", f"accuracy, {step} steps (%)"]
        header += [f"loss, {step} steps", "accuracy - MAML's (points)", "loss - MAML's"]
        against = {c["a"]: c for c in found["comparisons"] if c["b"] == PLAIN and c["step"] == step}
        lines = [_line(name, m, step, against.get(name)) for name, m in found["methods"].items()]
        others = [
            [c["a"], c["b"], str(c["step"]), interval(c["accuracy"], "+.1f", 100), interval(c["loss"], "+.3f")]
            for c in found["comparisons"] if c["b"] != PLAIN
        ]  # fmt: skip
        parts += [
            f"**{data}**",
            table(header, lines),
            table(["a", "b", "step", "accuracy a - b (points)", "loss a - b"], others),
        ]
    return "\n\n".join(parts) + "\n"


def _line(name: str, method: dict[str, Any], step: int, against: dict[str, Any] | None) -> list[str]:
    differences = ["", ""]
    if against is not None:
        differences = [interval(against["accuracy"], "+.1f", 100), interval(against["loss"], "+.3f")]
    moved = method.get("evaluated", "none") != "none"
    return [
        name,
        f"{method['step_size']:g}" if "step_size" in method else "",
        f"{method['growth']:.3g}" if moved else "",
        interval(method["accuracy"][step], ".1f", 100),
        interval(method["loss"][step], ".3f"),
        *differences,
    ]


def plot(results: dict[str, Any], step: int) -> Figure:
    """Above, accuracy against the steps of the inner loop; below, the paired difference to MAML after ``step``."""
    figure = Figure(figsize=(4.2 * len(results), 8.6), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False, height_ratios=(1, 1.1))
    for column, (data, found) in enumerate(results.items()):
        _draw_curves(axes[0, column], found["methods"])
        axes[0, column].set(title=data.replace("_", " "), xlabel="steps on the support set")
        _draw_differences(axes[1, column], found["comparisons"], step, bool(column))
    axes[0, 0].set(ylabel="query accuracy, held-out classes (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return figure


def _draw_curves(axes: Axes, methods: dict[str, Any]) -> None:
    for name, colour in COLOURS.items():
        if name not in methods:
            continue
        mean, low, high = ([100 * row[i] for row in methods[name]["accuracy"]] for i in range(3))
        axes.plot(mean, color=colour, label=name, marker=".")
        axes.fill_between(range(len(mean)), low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set(ylim=(LOWEST_ACCURACY, 100))
    axes.grid(alpha=0.3)


def _draw_differences(axes: Axes, comparisons: list[dict[str, Any]], step: int, names_left_out: bool) -> None:
    shown = [c for c in comparisons if c["b"] == PLAIN and c["step"] == step][::-1]
    for y, c in enumerate(shown):
        mean, low, high = (100 * value for value in c["accuracy"])
        colour = COLOURS.get(c["a"].removesuffix(EVALUATION_ONLY), "#777777")
        face = "white" if c["a"].endswith(EVALUATION_ONLY) else colour
        axes.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, markerfacecolor=face)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [c["a"].replace(", no", ",\nno") for c in shown], fontsize=8)
    axes.tick_params(labelleft=not names_left_out)
    axes.set(xlabel=f"accuracy - MAML's after {step} steps (points)")
    axes.grid(alpha=0.3, axis="x")
