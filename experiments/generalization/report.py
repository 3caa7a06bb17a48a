"""Tables of generalization.py."""

from typing import Any

from experiments.generalization.frequency import EVERY
from experiments.generalization.probes import ORTHANT, PUBLISHED, SCALING, SPHERE
from experiments.generalization.teleports import PLAIN
from experiments.lab.tables import interval, titled

MOVED = ("training loss", "test loss", SPHERE, ORTHANT, SCALING, PUBLISHED)


def markdown(results: list[dict[str, Any]]) -> str:
    """All tables of all data sets."""
    parts = []
    for content in results:
        parts += [moved_table(content, "after"), moved_table(content, "end"), test_table(content)]
        if "frequency" in content:
            parts += [frequency_table(content, key) for key in ("test", "gap")]
    return "\n".join(parts)


def moved_table(content: dict[str, Any], moment: str) -> str:
    """What the teleports moved, against no teleport at the same time."""
    branches = content["branches"]
    after = "right after the last teleport (nine steps of SGD after the first one)"
    when = after if moment == "after" else f"after epoch {branches['to']}"
    title = (
        f"**{content['data']}, what the teleports moved**, {when}: means without teleport, and differences to these "
        f"over {branches['seeds']} seeds with 95 % intervals; drift of the loss on the teleport's batch and length of "
        "the way in the Lie algebra, per teleport"
    )
    told = {row["variant"]: row["teleports"] for row in branches["rows"]}
    lines = [
        [
            row["variant"],
            *(shown(row["moved"][moment][name], row["variant"] == PLAIN) for name in MOVED),
            *_teleports(told[row["variant"]]),
        ]
        for row in branches["differences"]
    ]
    return titled(title, ["teleport", *MOVED, "drift: median, largest", "size"], lines)


def test_table(content: dict[str, Any]) -> str:
    """Test loss after the teleports, against no teleport."""
    branches = content["branches"]
    epochs = list(branches["differences"][0]["test"])
    title = (
        f"**{content['data']}, test loss after teleports at epoch {branches['from']}**: without teleport means, then "
        f"differences to these, paired by seed, with 95 % intervals ({branches['seeds']} seeds; in brackets how many "
        "were still finite where not all). Gap: test loss minus mean training loss of the epoch"
    )
    begin, end = branches["from"] + 1 + (branches["to"] - branches["from"]) // 2, branches["to"]
    columns = ["teleport", *(f"test loss, epoch {epoch}" for epoch in epochs)]
    columns += [f"test loss, mean of epochs {begin} to {end}", f"gap, epoch {epochs[-1]}", "accuracy"]
    lines = []
    for row in branches["differences"]:
        plain, seeds = row["variant"] == PLAIN, branches["seeds"]
        cells = [shown(found, plain, seeds) for found in (*(row["test"][epoch] for epoch in epochs), row["late"])]
        lines.append([row["variant"], *cells, shown(row["gap"][epochs[-1]], plain), shown(row["accuracy"], plain)])
    return titled(title, columns, lines)


def frequency_table(content: dict[str, Any], key: str) -> str:
    """Last test loss, or gap, against how often one teleports."""
    frequency = content["frequency"]
    what = "test loss" if key == "test" else "gap between test and training loss"
    plain = frequency["rows"][0][key]
    title = (
        f"**{content['data']}, {what} after epoch {frequency['to']}** by how often one teleports from epoch "
        f"{frequency['from']} on: difference to no teleport ({sum(plain) / len(plain):.4f}), paired by seed, with 95 % "
        f"intervals ({frequency['seeds']} seeds)"
    )
    rows: dict[str, dict[str, str]] = {}
    for row in frequency["differences"]:
        rows.setdefault(row["variant"], {})[row["frequency"]] = shown(row[key], False, frequency["seeds"])
    return titled(title, ["teleport", *EVERY], [[name, *(cells[f] for f in EVERY)] for name, cells in rows.items()])


def shown(found: dict[str, Any], plain: bool, seeds: int | None = None) -> str:
    """A mean, or a difference with its interval and, where that is less than ``seeds``, the number of seeds."""
    if found["mean"] is None:
        return f"{found['seeds']} finite"
    if plain:
        return f"{found['mean']:.4f}"
    some = f" ({found['seeds']})" if seeds is not None and found["seeds"] != seeds else ""
    return interval((found["mean"], found["low"], found["high"]), signed) + some


def signed(value: float) -> str:
    """Four digits behind the point, or three in all where the number is large."""
    return f"{value:+.4f}" if abs(value) < 10 else f"{value:+.3g}"


def _teleports(told: dict[str, Any] | None) -> list[str]:
    if told is None:
        return ["", ""]
    if told["drift_median"] is None:
        return ["none finite", f"{told['count']} x {told['size']:.2g}"]
    return [f"{told['drift_median']:.0e}, {told['drift_max']:.0e}", f"{told['count']} x {told['size']:.2g}"]
