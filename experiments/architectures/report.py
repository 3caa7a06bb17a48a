"""Tables and figures of architectures.py."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.architectures.training import PLAIN
from experiments.lab.figures import scatter
from experiments.lab.intervals import Row, difference
from experiments.lab.tables import interval, interval_of, titled

Results = list[dict[str, Any]]

KINDS = {"teleport": "#0072B2", "random": "#D55E00", "reset": "#009E73"}
"""Colours of the variants, by their first word."""
LOSSES = {"early": "training loss, first epoch", "train": "training loss", "test": "test loss"}
DRAWN = ("train", "test")
TARGETS = {"test": "test loss", "gap": "gap", "test_given_train": "test loss, training loss given"}
SHOWN = ("sharpness, t to 5", "curvature")


def markdown(results: Results) -> str:
    """The tables of all parts that were run."""
    tables = [table for content in results for table in (_sites(content), _speeds(content))]
    tables += [_correlations(content) for content in having(results, "correlation")]
    for content in having(results, "comparison"):
        tables += [_comparison(content, name, found["comparison"]) for name, found in content["networks"].items()]
    return "\n".join(tables)


def figures(results: Results) -> dict[str, Figure]:
    """The figures of all parts that were run, by name."""
    drawn = {f"comparison-{content['data']}": comparison_figure(content) for content in having(results, "comparison")}
    return drawn | {
        f"correlation-{content['data']}": correlation_figure(content) for content in having(results, "correlation")
    }


def having(results: Results, part: str) -> Iterator[dict[str, Any]]:
    """The data sets on which this part was run."""
    return (content for content in results if all(part in found for found in content["networks"].values()))


def _sites(content: dict[str, Any]) -> str:
    header = ["network", "parameters", "moved", "sites", "drift", "gradient norm squared: search", "random"]
    lines = []
    for name, found in content["networks"].items():
        growth = found["first_teleport"]
        moved = f"{found['moved'] / found['parameters']:.0%}"
        cells = [name, f"{found['parameters']}", moved, "<br>".join(found["sites"]), f"{found['drift']:.0e}"]
        lines.append([*cells, f"x {growth['search']:.2f}", f"x {growth['random']:.2f}"])
    return titled(f"**{content['data']}: sites that detection finds**", header, lines)


def _speeds(content: dict[str, Any]) -> str:
    counts = list(next(iter(content["networks"].values()))["milliseconds"])
    lines = [[name, *(f"{ms:.1f}" for ms in f["milliseconds"].values())] for name, f in content["networks"].items()]
    title = f"{content['data']}: milliseconds of processor time per step of all copies, batches of {content['batch']}"
    return titled(f"**{title}**", ["network", *(f"{count} copies" for count in counts)], lines)


def _correlations(content: dict[str, Any]) -> str:
    header = ["network", "measure", *TARGETS.values(), "reliability"]
    lines, told = [], []
    for name, found in content["networks"].items():
        run = found["correlation"]
        told.append(
            f"{name}: {len(run['test_loss'])} seeds, training loss {np.mean(run['training_loss']):.3g}, test loss "
            f"{np.mean(run['test_loss']):.3g}, accuracy {run['accuracy']['mean']:.3f}, {run['left_out']} left out"
        )
        for measure, values in run["measures"].items():
            reliability = f"{values['reliability']:.2f}" if "reliability" in values else ""
            lines.append([name, measure, *(interval_of(values.get(target)) for target in TARGETS), reliability])
    epochs = next(iter(content["networks"].values()))["correlation"]["epochs"]
    title = f"{content['data']}: Pearson's r over seeds, 95 % intervals, after {epochs} epochs of SGD"
    return titled(f"**{title}**", header, lines) + "\n" + "\n".join(f"{line}  " for line in told) + "\n"


def _comparison(content: dict[str, Any], name: str, part: dict[str, Any]) -> str:
    header = ["optimizer", "variant", "step size"]
    header += [cell for label in LOSSES.values() for cell in (label, "difference")] + ["accuracy"]
    lines = [_line(row, plain) for row, plain in paired(part)]
    title = (
        f"{content['data']}, {name}: after {part['epochs']} epochs, means of {part['seeds']} seeds; differences to the "
        "plain optimizer, paired by seed, 95 % intervals"
    )
    return titled(f"**{title}**", header, lines)


def paired(part: dict[str, Any]) -> list[tuple[Row, Row]]:
    """Every row with that of its plain optimizer."""
    plain = {row["method"]: row for row in part["rows"] if row["variant"] == PLAIN}
    return [(row, plain[row["method"]]) for row in part["rows"]]


def _line(row: Row, plain: Row) -> list[str]:
    cells = [row["method"], row["variant"], f"{row['lr']:g}"]
    for key in LOSSES:
        cells.append(f"{np.mean(row['last'][key]):.4f}")
        cells.append("" if row is plain else interval(difference(row, plain, key), "+.4f"))
    return [*cells, f"{np.mean(row['last']['accuracy']):.4f}"]


def comparison_figure(content: dict[str, Any]) -> Figure:
    """Differences to the plain optimizer in percent of its mean loss: one column per network, training loss above."""
    names = list(content["networks"])
    figure = Figure(figsize=(2.8 * len(names) + 1.6, 7.6), layout="constrained")
    grid = figure.subplots(len(DRAWN), len(names), squeeze=False, sharey=True)
    for line, key in zip(grid, DRAWN, strict=True):
        for axes, name in zip(line, names, strict=True):
            _forest(axes, content["networks"][name]["comparison"], key)
            axes.set_title(name)
            axes.set_xlabel(f"change of the {LOSSES[key]}, %", fontsize=9)
    part = content["networks"][names[0]]["comparison"]
    figure.suptitle(f"{content['data']}, {part['epochs']} epochs: {part['seeds']} seeds, paired 95 % intervals")
    return figure


def _forest(axes: Axes, part: dict[str, Any], key: str) -> None:
    rows = [(row, plain) for row, plain in paired(part) if row is not plain]
    for place, (row, plain) in enumerate(rows):
        mean, low, high = (100 * value / np.mean(plain["last"][key]) for value in difference(row, plain, key))
        colour = KINDS[row["variant"].split(",")[0]]
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, markersize=4, capsize=2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row['method']}: {row['variant']}" for row, _ in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(alpha=0.3, axis="x")


def correlation_figure(content: dict[str, Any]) -> Figure:
    """Test loss against sharpness and against curvature, one dot per seed, one column per network."""
    names = list(content["networks"])
    figure = Figure(figsize=(3.4 * len(names), 3.0 * len(SHOWN)), layout="constrained")
    grid = figure.subplots(len(SHOWN), len(names), squeeze=False)
    for line, measure in zip(grid, SHOWN, strict=True):
        for axes, name in zip(line, names, strict=True):
            scatter(axes, content["networks"][name]["correlation"], measure)
            axes.set_title(f"{name}: {axes.get_title()}", fontsize=9)
        line[0].set_ylabel("test loss")
    return figure
