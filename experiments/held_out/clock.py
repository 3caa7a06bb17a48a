"""What the methods of one member take, clocked in turns within one run, so that all share the machine as it is then."""

from pathlib import Path

from experiments.held_out.bench import Bench
from experiments.held_out.entries import Entry, entries
from experiments.held_out.runs import Outcome, run
from meta_teleport.runs.provenance import provenance
from meta_teleport.runs.run import read_json, write_json

ROUNDS = 2


def clock(out: Path, bench: Bench) -> None:
    """Writes the seconds of one horizon of every method, round by round; what is learned has its first meta-seed."""
    made = {entry.name: entry.make() for entry in clocked(out, bench)}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(ROUNDS):
        for name, (method, tasks) in made.items():
            outcome = run(method, tasks, bench.setting.horizon, bench.setting)
            seconds[name].append(float(outcome.seconds[-1]))
    bench.folder.mkdir(parents=True, exist_ok=True)
    write_json(bench.clock, {"seconds": seconds, "provenance": provenance()})


def clocked(out: Path, bench: Bench) -> list[Entry]:
    """The entries that last one horizon, or are the same whatever they last."""
    return [entry for entry in entries(out, bench, 1) if entry.multiple == 1]


def seconds_of(bench: Bench) -> dict[str, float]:
    """The least seconds that one horizon of each method took; empty before the clock has run."""
    if not bench.clock.exists():
        return {}
    return {name: min(rounds) for name, rounds in read_json(bench.clock)["seconds"].items()}


def paced(outcome: Outcome, seconds: dict[str, float], horizon: int) -> Outcome:
    """The same at the pace of the clock: its first horizon takes the ``seconds`` of its method."""
    if (name := outcome.numbers["method"]) not in seconds:
        return outcome
    own = float(outcome.seconds[int((outcome.steps == horizon).nonzero()[0])])
    return outcome._replace(seconds=outcome.seconds * (seconds[name] / own))
