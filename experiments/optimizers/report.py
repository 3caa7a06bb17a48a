"""Tables and figures of optimizers.py."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.lab.intervals import Row, difference
from experiments.lab.tables import interval, titled
from experiments.optimizers.bench import EARLY
from experiments.optimizers.variants import PLAIN

COLOURS = {
    PLAIN: "black",
    "published": "#D55E00",
    "published, random": "#E6AB6B",
    "scaling": "#0072B2",
    "scaling, random": "#7FBCE0",
    "state reset": "#009E73",
}
QUANTITIES = (("train", "training loss"), ("test", "test loss"))


def markdown(content: dict[str, Any], name: str) -> str:
    """The table of one part of one data set."""
    rows = content[name]["rows"]
    plain = {row["method"]: row for row in rows if row["variant"] == PLAIN}
    unit = content[name].get("unit", "epochs")
    head = (
        f"**{content['data']}, {_title(name)}**: after {content[name]['epochs']} {unit}, means of "
        f"{content['seeds']} runs; differences to the plain optimizer with 95 % intervals, paired by seed"
    )
    columns = ["optimizer", "teleport", "lr", f"training loss after {min(EARLY, content[name]['epochs'])}: difference"]
    columns += ["training loss", "difference", "test loss", "difference", "accuracy", "difference, points"]
    columns += ["drift: median, largest", "size"]
    return titled(head, columns, [_line(row, plain.get(row["method"])) for row in rows])


def _title(name: str) -> str:
    return f"{name} step sizes" if name in ("published", "tuned") else name


def _line(row: Row, plain: Row | None) -> list[str]:
    cells = [row["method"], row["variant"], f"{row['lr']:.3g}", _compared(row, plain, "train", "early")]
    for key, factor, digits in (("train", 1, 4), ("test", 1, 4), ("accuracy", 100, 2)):
        last = row["last"][key]
        diverged = sum(value is None for value in last)
        mean = "" if diverged else f"{factor * sum(last) / len(last):.{digits}f}"
        cells.append(f"{diverged} of {len(last)} diverged" if diverged else mean)
        cells.append(_compared(row, plain, key, "last", factor, digits))
    told = row["teleports"]
    drift = f"{told['drift_median']:.0e}, {told['drift_max']:.0e}" if told else ""
    return [*cells, drift, f"{told['size']:.2g}" if told else ""]


def _compared(row: Row, plain: Row | None, key: str, when: str, factor: float = 1, digits: int = 4) -> str:
    """The difference with its interval; nothing where one of the two has runs that diverged."""
    if plain is None or plain is row or None in row[when][key] + plain[when][key]:
        return ""
    return interval(difference(row, plain, key, when), f"+.{digits}f", factor)


def plot(content: dict[str, Any], name: str) -> Figure:
    """Training and test loss against epochs (or steps) and, where a step was timed, against time; one column per
    optimizer."""
    rows, unit = content[name]["rows"], content[name].get("unit", "epochs")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [(*quantity, False) for quantity in QUANTITIES]
    lines += [(*quantity, True) for quantity in QUANTITIES if "seconds_per" in content]
    figure = Figure(figsize=(max(2.4 * len(methods), 7.5), 1.9 * len(lines) + 0.6), layout="constrained")
    grid = figure.subplots(len(lines), len(methods), squeeze=False)
    for column, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        for axes, (key, label, timed) in zip(grid[:, column], lines, strict=True):
            axes.set(xlabel="seconds, one run alone" if timed else unit, yscale="log")
            _draw(axes, own, key, content if timed else None)
            axes.grid(alpha=0.3)
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.tick_params(labelsize=7)
            if not column:
                axes.set_ylabel(label)
        grid[0, column].set_title(f"{method}, lr {own[0]['lr']:.3g}" if name == "published" else method, fontsize=10)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.suptitle(f"{content['data']}: {_title(name)}, means of {content['seeds']} runs", fontsize=11)
    return figure


def _draw(axes: Axes, rows: list[Row], key: str, timed: dict[str, Any] | None) -> None:
    """One line per variant, from the first epoch on. Lines that leave those of the plain optimizer behind, as diverging
    ones do, do not stretch the axis."""
    for row in rows:
        losses = [float("nan") if loss is None else loss for loss in row["mean"][key]]
        at = [float(epoch) for epoch in range(len(losses))] if timed is None else seconds_at(timed, row)
        style = "--" if "random" in row["variant"] else ":" if row["variant"] == "state reset" else "-"
        axes.plot(at[1:], losses[1:], style, color=COLOURS[row["variant"]], label=row["variant"], linewidth=1.1)
    plain = [loss for row in rows if row["variant"] == PLAIN for loss in row["mean"][key][1:] if loss is not None]
    if plain:
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.6 * max(plain)))


def seconds_at(content: dict[str, Any], row: Row) -> list[float]:
    """Seconds until the end of every epoch, the start included, for one run alone: steps times the seconds of a step,
    and, once they have happened, teleports times the seconds of a teleport."""
    seconds, told = content["seconds_per"], row["teleports"]
    jumps = told["count"] * seconds["teleport"][row["variant"]] if told else 0.0
    epoch_s = content["steps_per_epoch"] * seconds["step"][row["method"]]
    return [i * epoch_s + (jumps if i > row["epoch"] else 0.0) for i in range(len(row["mean"]["train"]))]
