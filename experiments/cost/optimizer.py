"""What a learned rule costs as a torch optimizer, beside Adam on the same network and batch.

    python -m experiments.cost.optimizer            everything, about 11 minutes of one busy core
    python -m experiments.cost.optimizer --smoke    toy sizes, in seconds, no claim

Three kinds of networks on 128 points: an MLP 784-w-w-10 with ReLU (positive scalings), 784-w-10 without (GL(w)), and
four frozen linear maps of width w with low-rank adapters and ReLU (GL(8)). An *iteration* is forward, backward, step;
the *step* alone finds its gradients in place. Both are ratios to torch's Adam at its defaults, whose bursts lie before
and after every burst of the rule: read the ratios, not the seconds. A burst is of whole cycles from teleport to
teleport. Seconds are those of the processor, not of the wall, so that other programs on the core count only by what
they leave in the caches. Rules have random heads, as a trained one has no zero ones, and teleport at every step; only
the pretrained one is as it comes with the package: a teleport every 5 steps, running means of the gradients. Writes
``optimizer_cost.json`` and ``.md`` to ``--out``.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import process_time
from typing import Any

import torch
from torch.optim import Adam

from experiments.cost.optimizer_report import markdown
from experiments.cost.subjects import Subject
from experiments.lab.script import finish, parser, run
from experiments.lab.timing import Clock, Work
from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.learned.serialization import load
from meta_teleport.rules.rule import initialized

NAMES = ("adam", "polyak", "plain_adam", "coordinatewise")
SHIPPED = "the pretrained rule"
GOAL = 3.0
FAR = 10**9
"""A horizon beyond all steps: teleports end there."""


@dataclass(frozen=True)
class Plan:
    """Widths per kind of network, those at which rules are also asked without teleports, and how long to look."""

    widths: dict[str, tuple[int, ...]]
    inputs: int
    alone: int
    bursts: int
    seconds: float


PLAN = Plan(
    {"ReLU": (64, 256, 1024), "linear": (32, 128, 256), "adapters": (64, 256, 1024)},
    inputs=784,
    alone=256,
    bursts=8,
    seconds=0.15,
)
SMOKE = Plan({"ReLU": (4,), "linear": (3,), "adapters": (12,)}, inputs=6, alone=4, bursts=1, seconds=0.0)


class ProcessorClock(Clock):
    """A clock that stands still while other programs run."""

    def burst(self, work: Work, run: Callable[[], object]) -> float:
        began, calls = process_time(), 0
        while not calls or process_time() - began < self.seconds:
            run()
            calls += 1
        return (process_time() - began) / (calls * work.units)


def rule(update: str, **settings: Any) -> Equivariant:
    """An equivariant rule whose heads are as if it had been trained, with steps that lead nowhere far."""
    with initialized(0):
        made = Equivariant(update, start=-9.0, lr=1e-5, horizon=FAR, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.add_(0.002 * torch.randn(p.shape, generator=generator) if "head" in name else 0.0)
    return made


def rules(width: int, plan: Plan) -> Iterator[tuple[str, Equivariant]]:
    """All rules that are measured at a width, by name."""
    for update in NAMES:
        yield update, rule(update)
    if width == plan.alone:
        shipped = load("factors")
        assert isinstance(shipped, Equivariant)
        shipped.horizon, shipped.experience = FAR, None  # measured, not trained: the loss is not to fall
        yield "adam, no teleports", rule("adam", bases=[])
        yield "muon", rule("muon")
        yield SHIPPED, shipped


def measure(kind: str, width: int, plan: Plan, clock: Clock) -> Iterator[dict[str, Any]]:
    """One row per rule, and one for fused Adam, at one network."""
    symmetry = Subject(kind, width, plan.inputs).symmetry
    found = {"network": kind, "width": width, "sites": len(symmetry.continuous.sites)}
    subject = partial(Subject, kind, width, plan.inputs, symmetry)
    for step_alone in (False, True):

        def adam(fused: bool | None = None, step_alone: bool = step_alone) -> Work:
            own = subject()
            call = own.ordinary(Adam(own.trained, fused=fused), step_alone)
            return Work(lambda: call)

        what = {**found, "parameters": subject().parameters, "measured": "step" if step_alone else "iteration"}
        yield {**what, "rule": "fused Adam", **clock.compare(adam(fused=True), adam())}
        for name, made in rules(width, plan):
            times = made.every if made.bases else 1
            call, undone = subject().learned(made, step_alone, times)
            row = clock.compare(Work(lambda call=call: call, times), adam())  # type: ignore[misc]
            yield {**what, "rule": name, **row, "undone": undone()}


def main() -> None:
    made = parser("optimizer_cost", __doc__)
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    plan = SMOKE if args.smoke else PLAN
    clock, load, rows = ProcessorClock(plan.bursts, plan.seconds), os.getloadavg()[0], []
    for kind, widths in plan.widths.items():
        for width in widths:
            rows += list(measure(kind, width, plan, clock))
    finish(args, {"load": load, "goal": GOAL, "rows": rows}, markdown(rows))


if __name__ == "__main__":
    run(main)
