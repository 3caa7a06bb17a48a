"""Tables and figure of factors.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lab.tables import interval, titled

HEADER = ("method", "median error", "ratio to Adam", "lower error", "settings", "left out")
STYLES: dict[str, dict[str, Any]] = {
    "Adam": {"color": "black", "linewidth": 2.2},
    "Adam, moments reset": {"color": "black", "linestyle": ":"},
    "principal axes, transported": {"color": "#d62728", "linewidth": 2.2},
    "principal axes, reset": {"color": "#d62728", "linestyle": ":"},
    "principal axes, kept": {"color": "#d62728", "linestyle": "--"},
    "balanced, transported": {"color": "#ff7f0e"},
    "whitened A, transported": {"color": "#bcbd22"},
    "random elements, transported": {"color": "#7f7f7f", "linestyle": "--"},
    "tuned gauge, transported": {"color": "#9467bd", "linestyle": (0, (2, 3)), "linewidth": 2.2},
    "learned teleports, transported": {"color": "#2ca02c", "linewidth": 2.2},
    "learned rule": {"color": "#2ca02c", "linewidth": 2.2, "linestyle": "--"},
    "learned rule without teleports": {"color": "#2ca02c", "linestyle": ":"},
    "teleports of adapters, transported": {"color": "#17becf", "linewidth": 2.2},
    "learned rule of adapters": {"color": "#17becf", "linewidth": 2.2, "linestyle": "--"},
    "momentum": {"color": "#1f77b4", "linestyle": "--"},
    "scaled gradient descent": {"color": "#1f77b4"},
}
PANELS = (
    ("noiseless", "beta2 = 0.999"),
    ("noiseless", "beta2 tuned"),
    ("noisy", "beta2 tuned"),
    ("noiseless", "beta2 = 0.95"),
    ("noisy", "beta2 = 0.95"),
    ("missing", "beta2 = 0.95"),
)


def panels(content: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What is drawn: title, name of the error, and the reports by method."""
    for regime, scope in PANELS if "factorization" in content else ():
        reports = content["factorization"]["results"].get(regime, {}).get(scope)
        if reports is None:
            continue
        yield f"factorisation, {regime} ({scope})", "relative test error", reports
    if "lora" in content:
        for scope, reports in content["lora"]["results"]["adapters"].items():
            yield f"LoRA adapters ({scope})", "excess test loss (nats per token)", reports


def plot(content: dict[str, Any], path: Path) -> None:
    """Writes a PNG: above, the median error on tuning problems against the step size; below, that on fresh problems
    against the step, with the settings that were chosen."""
    shown = list(panels(content))
    figure = Figure(figsize=(5.2 * len(shown), 8.6), layout="constrained", dpi=72)
    axes = figure.subplots(2, len(shown), squeeze=False)
    for (above, below), (title, error, reports) in zip(axes.T, shown, strict=True):
        for name, report in reports.items():
            if len(report["tuning"]["lr"]) > 1:
                _line(above, report["tuning"]["lr"], report["tuning"]["median"], name, marker=".")
            _line(below, report["curve"]["step"], report["curve"]["median"], name)
        _finish(above, title, "step size", error)
        _finish(below, None, "step", error)
        above.set_xscale("log")
    drawn = [pair for below in axes[1] for pair in zip(*below.get_legend_handles_labels(), strict=True)]
    lines = {label: handle for handle, label in drawn}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.savefig(path)


def _line(axes: Axes, x: list[float], y: list[float], name: str, **extra: Any) -> None:
    kept = [(a, b) for a, b in zip(x, y, strict=True) if b < 2]
    axes.plot([a for a, _ in kept], [b for _, b in kept], label=name, **{"linewidth": 1.4, **STYLES[name], **extra})


def _finish(axes: Axes, title: str | None, xlabel: str, ylabel: str) -> None:
    axes.set(yscale="log", xlabel=xlabel, ylabel=f"{ylabel}, median")
    axes.grid(alpha=0.3, which="both")
    if title:
        axes.set_title(title, fontsize=11)


def markdown(content: dict[str, Any]) -> str:
    """One table per regime and scope."""
    tables: list[str] = []
    if "factorization" in content:
        for regime, scopes in content["factorization"]["results"].items():
            for scope, reports in scopes.items():
                tables.append(titled(f"**Factorisation, {regime}, {scope}**", HEADER, map(_cells, reports.items())))
    if "lora" in content:
        found = content["lora"]["results"]
        for scope, reports in found["adapters"].items():
            start = f"excess {found['before']:.3f} before, {found['pretrained']:.3f} on the language of pre-training"
            tables.append(titled(f"**LoRA adapters, {scope}** ({start})", HEADER, map(_cells, reports.items())))
    return "\n".join(tables)


def _cells(line: tuple[str, dict[str, Any]]) -> list[str]:
    name, report = line
    settings = ", ".join(f"{key} {value:g}" for key, value in report["settings"].items())
    return [
        name,
        interval((report["median"], *report["ci95"]), _number),
        interval((report["ratio"], *report["ratio_ci95"]), _number),
        f"{report['wins']:.0%}" + (f", {report['diverged']} diverged" if report["diverged"] else ""),
        settings + (" (edge of the grid)" if report["at_edge"] else ""),
        f"{report['skipped']:.1%}" if report["skipped"] else "",
    ]


def _number(x: float) -> str:
    return f"{x:.2e}" if x < 0.01 else f"{x:.3g}"
