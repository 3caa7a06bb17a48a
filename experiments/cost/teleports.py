"""What teleports cost, in forward-backward passes of the same model on the same batch.

    python -m experiments.cost.teleports            everything, about 10 minutes of a machine with nothing else to do
    python -m experiments.cost.teleports --smoke    toy networks, in seconds, no claim

Five parts: finding the symmetry; one teleport; training with a teleport every k steps against the bare optimizer; a
teleport against the width of the network, as a user calls it; the searches of all objectives and actions against width
and depth. Every burst of what is measured lies between two bursts of what it is measured by, so that both saw the same
machine: read the ratios, not the seconds. Writes ``overhead.json``, ``.md``, ``.png`` and ``overhead_sizes.png`` to
``--out``; Ctrl-C stops after the part under way, and the same command goes on from there.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from shutil import rmtree
from statistics import median
from typing import Any

import torch
from torch import Tensor

import meta_teleport as mt
from experiments.cost import sizes_report as overhead_sizes_report
from experiments.cost.networks import NETWORKS, TOY_NETWORKS, Build, Network, loss, mlp, small_vit, vit_b_16
from experiments.cost.report import markdown, plot
from experiments.cost.sizes import exponents, sizes
from experiments.cost.training import OPTIMIZERS, Training
from experiments.lab.progress import collect
from experiments.lab.script import finish, parser, run
from experiments.lab.timing import Clock, Counted, Work, all_cores
from meta_teleport.params import Params
from meta_teleport.teleportation.objectives import Curvature, Loss, Sharpness, gradient_norm

OTHER_STATES: dict[str, tuple[str, ...]] = {"SGD": (), "Adam": ("keep", "reset")}
GAUGES = ("balanced", "whitened", "principal_axes")


@dataclass(frozen=True)
class Plan:
    """What is measured: networks, a large one for detection alone and on all cores, the intervals between teleports in
    rising order, the longest one that is measured on all networks by optimizer, the widths of MLPs, and, for the part
    on sizes, widths, depths, and the width of the deep ones."""

    networks: dict[str, Build]
    large: dict[str, Build]
    every: tuple[int, ...]
    longest: dict[str, int]
    widths: dict[str, tuple[int, ...]]
    sizes: tuple[tuple[int, ...], tuple[int, ...], int]
    bursts: int
    detections: int
    seconds: float


PLAN = Plan(
    NETWORKS,
    {"vit_b_16": vit_b_16},
    every=(5, 20, 100, 1000),
    longest={"SGD": 100, "Adam": 20},
    widths={"ReLU": (32, 64, 128, 256, 512, 1024, 2048), "linear": (32, 64, 128, 256, 512)},
    sizes=((16, 32, 64, 128, 256, 512, 1024), (2, 4, 8, 16), 64),
    bursts=8,
    detections=3,
    seconds=0.06,
)
SMOKE = Plan(
    TOY_NETWORKS,
    {"small ViT": small_vit},
    every=(2, 4, 8),
    longest={"SGD": 4, "Adam": 4},
    widths={"ReLU": (4,), "linear": (4,)},
    sizes=((4, 128), (1, 2), 4),
    bursts=1,
    detections=1,
    seconds=0.0,
)


def forward_backward(network: Network) -> Work:
    def run() -> None:
        loss(network.model, network.batch).backward()
        network.model.zero_grad()

    return Work(lambda: run)


def detection(network: Network, times: int, clock: Clock) -> dict[str, Any]:
    """Seconds to find the symmetry, numeric check included, beside one forward-backward pass."""
    find, run, once = Work(lambda: network.detect), forward_backward(network), replace(clock, seconds=0.0)
    sites = len(network.symmetry.sites)
    seconds = [once.burst(find, find.begin()) for _ in range(times)]
    passes = median(clock.burst(run, run.begin()) for _ in range(times))
    taken = {"seconds": median(seconds), "longest": max(seconds), "passes": median(seconds) / passes}
    return {"parameters": network.parameters, "sites": sites, "threads": torch.get_num_threads(), **taken}


def differentiated(loss: Loss, params: Params) -> Tensor:
    """The gradient norm as a function that the search knows nothing about: second derivatives at every step."""
    return gradient_norm(loss, params)


def searches(network: Network) -> Iterator[tuple[str, dict[str, Any]]]:
    """The arguments of ``mt.teleport``, by name."""
    search: dict[str, Any] = {"loss": loss, "batch": network.batch}
    yield "gradient norm, 10 steps", search
    yield "gradient norm, 1 step", {**search, "steps": 1}
    yield "gradient norm by second derivatives, 1 step", {**search, "objective": differentiated, "steps": 1}
    lower: dict[str, Any] = {**search, "direction": "lower", "steps": 1}
    yield "sharpness, 1 of 10 directions, 1 step", {**lower, "objective": Sharpness(directions=1)}
    yield "curvature, 1 of 10 directions, 1 step", {**lower, "objective": Curvature(network.symmetry, directions=1)}
    for gauge in GAUGES:
        yield gauge, {"objective": gauge}
    yield "random", {"objective": "random", "generator": torch.Generator().manual_seed(0)}


def teleports(network: Network, clock: Clock) -> Iterator[dict[str, Any]]:
    """One row per kind of teleport: forward-backward passes, and how often it runs the loss forward and backward."""
    for name, arguments in searches(network):
        teleport = partial(mt.teleport, network.model, network.symmetry, **arguments)
        counted = Counted(loss)
        found = teleport(loss=counted) if "loss" in arguments else teleport()
        counts = {"forward": counted.forward, "backward": counted.backward, "accepted": found.accepted}
        work = Work(lambda run=teleport: run)  # type: ignore[misc]
        yield {"teleport": name, **counts, **clock.compare(work, forward_backward(network))}


def slowdowns(network: Network, optimizer: str, every: tuple[int, ...], clock: Clock) -> Iterator[dict[str, Any]]:
    """One row per schedule (0: never): seconds per step over those of the bare optimizer."""
    bare = Training(network, optimizer).work()
    schedules = [(k, "transport") for k in (0, *every)]
    for k, state in schedules + [(every[0], state) for state in OTHER_STATES[optimizer]]:
        training = Training(network, optimizer, k, state)
        row = clock.compare(training.work(), bare)
        yield {"optimizer": optimizer, "every": k, "state": state, "accepted": training.accepted, **row}


def extrapolated(rows: list[dict[str, Any]], every: int) -> dict[str, Any]:
    """The row of an interval that takes too long to measure: what teleports add is in inverse proportion to it."""
    ratios = {row["every"]: row["ratio"] for row in rows if row["state"] == "transport"}
    longest = max(ratios)
    ratio = ratios[0] + (ratios[longest] - ratios[0]) * longest / every
    settings = {name: rows[0][name] for name in ("optimizer", "state")}
    return {**settings, "every": every, "ratio": ratio, "extrapolated": True}


def training(name: str, network: Network, plan: Plan, clock: Clock) -> Iterator[dict[str, Any]]:
    """All intervals are measured on the MLP, whose steps are short; elsewhere the longest ones are extrapolated."""
    for optimizer in OPTIMIZERS:
        measured = tuple(k for k in plan.every if k <= plan.longest[optimizer] or name == "MLP")
        rows = list(slowdowns(network, optimizer, measured, clock))
        yield from rows
        yield from (extrapolated(rows, k) for k in plan.every if k not in measured)


def widths(kind: str, width: int, clock: Clock) -> Iterator[dict[str, Any]]:
    """An MLP 784-width-width-10: positive scalings behind ReLU, without it the general linear group."""
    network = mlp((784, width, width, 10), relu=kind == "ReLU").to(clock.device)
    for name, arguments in searches(network):
        if name in ("gradient norm, 10 steps", "balanced"):
            teleport = partial(mt.teleport, network.model, network.symmetry, **arguments)
            work = Work(lambda run=teleport: run)  # type: ignore[misc]
            row = clock.compare(work, forward_backward(network))
            yield {"network": kind, "width": width, "parameters": network.parameters, "teleport": name, **row}


Rows = list[dict[str, Any]]


def measure(plan: Plan, device: str) -> dict[str, Callable[[], Rows]]:
    """The parts, each with what gives its rows."""
    clock = Clock(plan.bursts, plan.seconds, device)
    networks = {name: build().to(device) for name, build in plan.networks.items()}

    def detections() -> Rows:
        found = [(name, detection(network, plan.detections, clock)) for name, network in networks.items()]
        with all_cores():
            for name, build in plan.large.items():
                found.append((name, detection(build().to(device), plan.detections, clock)))
        return [{"network": name, **row} for name, row in found]

    kinds = [(kind, width) for kind, chosen in plan.widths.items() for width in chosen]
    named = networks.items()
    return {
        "sizes": lambda: list(sizes(*plan.sizes, clock)),
        "detection": detections,
        "teleports": lambda: [{"network": name, **row} for name, of in named for row in teleports(of, clock)],
        "training": lambda: [{"network": name, **row} for name, of in named for row in training(name, of, plan, clock)],
        "widths": lambda: [row for kind, width in kinds for row in widths(kind, width, clock)],
    }


def loaded(rows: Callable[[], Rows]) -> dict[str, Any]:
    """The rows of one part, and the load of the machine before it."""
    return {"load": os.getloadavg()[0], "rows": rows()}


def main() -> None:
    made = parser("overhead", __doc__, "toy networks, no claim")
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    hardware = {"cpu": torch.backends.cpu.get_cpu_capability(), "threads": args.threads}
    if args.device.startswith("cuda"):
        hardware["gpu"] = torch.cuda.get_device_name()
    keep, settings = args.out / "overhead-progress", {"smoke": args.smoke, "hardware": hardware}
    parts = measure(SMOKE if args.smoke else PLAN, args.device)
    found = collect({name: partial(loaded, rows) for name, rows in parts.items()}, keep, settings)
    results: dict[str, Any] = {name: part["rows"] for name, part in found.items()}
    fits = exponents(results["sizes"])
    tables = [markdown(part, results[part]) for part in ("detection", "teleports", "training", "widths")]
    tables.append(overhead_sizes_report.markdown(results["sizes"], fits))
    figures = {"overhead": plot(results), "overhead_sizes": overhead_sizes_report.plot(results["sizes"], fits)}
    load = {name: part["load"] for name, part in found.items()}
    finish(args, {"hardware": hardware, "load": load, **results, "exponents": fits}, "\n".join(tables), figures)
    rmtree(keep)


if __name__ == "__main__":
    run(main)
