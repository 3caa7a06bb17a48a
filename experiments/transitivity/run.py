"""Does one orbit fill a level set? (Zhao et al. 2024 leave this open.)

    python -m experiments.transitivity.run            a few minutes of one core
    python -m experiments.transitivity.run --smoke    four networks, two seeds, few steps, no claim

For small networks, the dimension of the orbit beside that of the sets it lies in (see ``orbit_dimensions``), with the
exact sites and with the paper's two data-dependent actions on the widest batch that they keep, at the initial weights
and after training by Adam on that batch: towards the outputs of another network of the same form where the batch is
wide, towards random numbers where it is narrow. Float64. Writes ``transitivity.json``, ``.md``, ``.png`` and ``.pdf``
to ``--out``; Ctrl-C stops after the network under way, and the same command goes on from there.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from experiments.lab.progress import collect
from experiments.lab.script import finish, parser, run
from experiments.transitivity.networks import CASES, SMOKE, WIDE, Case
from experiments.transitivity.orbit_dimensions import dimensions
from experiments.transitivity.report import markdown, plot
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.params import Params, norm, value_and_grad

SEEDS, STEPS, RATE = 5, 4000, 1e-2
SMOKE_SEEDS, SMOKE_STEPS = 2, 50
TEACHER = 1000


def mean_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).mean(1)


def targets_of(case: Case, inputs: Tensor) -> Tensor:
    """What the network is trained to give on inputs ``(seeds, n, ...)``."""
    teachers = Ensemble(case.build, range(TEACHER, TEACHER + len(inputs)), [Adam], mean_squares)
    outputs = teachers.outputs(inputs).detach()
    if inputs.shape[1] >= WIDE:
        return outputs
    return torch.randn(outputs.shape, generator=torch.Generator().manual_seed(TEACHER), dtype=outputs.dtype)


def slopes(copies: Ensemble, inputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient norm of every copy."""
    return norm(value_and_grad(partial(copies.losses, inputs, targets), copies.params)[1])


def measured(case: Case, copies: Ensemble, inputs: Tensor, targets: Tensor, when: str) -> list[dict[str, Any]]:
    """One row per seed."""
    losses, gradients = copies.losses(inputs, targets).detach(), slopes(copies, inputs, targets)
    symmetries, rows = case.symmetries(), []
    for number, seed in enumerate(copies.seeds):
        params: Params = {name: p[number : number + 1].detach() for name, p in copies.params.items()}
        found = dimensions(copies.model, symmetries, params, inputs[number], case.many())
        point = {"when": when, "seed": seed, "loss": float(losses[number]), "gradient": float(gradients[number])}
        rows.append({**point, **found._asdict()})
    return rows


def study(case: Case, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """The rows of one network, before and after training."""
    copies = Ensemble(case.build, seeds, [partial(Adam, lr=RATE)], mean_squares)
    like = {name: p[:1].detach() for name, p in copies.params.items()}
    inputs = torch.stack([case.batch(seed, like) for seed in seeds])
    targets = targets_of(case, inputs)
    rows = measured(case, copies, inputs, targets, "initial")
    for _ in range(steps):
        copies.step(inputs, targets)
    rows += measured(case, copies, inputs, targets, "trained")
    about = {"network": case.name, "actions": list(case.actions), "points": inputs.shape[1]}
    return {"rows": [{**about, **row} for row in rows]}


def studies(cases: Sequence[Case], seeds: int, steps: int, keep: Path) -> list[dict[str, Any]]:
    """All rows; what is finished is kept in a folder. Raises ``Stopped`` on Ctrl-C, and ``UserError`` for a folder of
    other settings."""
    parts = {case.key: partial(study, case, range(seeds), steps) for case in cases}
    found = collect(parts, keep, {"seeds": seeds, "steps": steps, "rate": RATE})
    return [row for case in cases for row in found[case.key]["rows"]]


def main() -> None:
    made = parser("transitivity", __doc__, "four networks, two seeds, few steps, no claim")
    made.add_argument("--seeds", type=int, help=f"runs per network; default: {SEEDS}")
    args = made.parse_args()
    seeds = args.seeds or (SMOKE_SEEDS if args.smoke else SEEDS)
    cases, steps = SMOKE if args.smoke else CASES, SMOKE_STEPS if args.smoke else STEPS
    rows = studies(cases, seeds, steps, args.out / "progress")
    content = {"seeds": seeds, "steps": steps, "rate": RATE, "rows": rows}
    finish(args, content, markdown(rows), {"transitivity": plot(rows)})


if __name__ == "__main__":
    run(main)
