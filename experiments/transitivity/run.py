"""Does one orbit fill a level set? (Zhao et al. 2024 leave this open.)

    python -m experiments.transitivity.run            a few minutes of one core
    python -m experiments.transitivity.run --smoke    four networks, two seeds, few steps, no claim

For small networks, the dimension of the orbit beside that of the sets it lies in (see ``orbit_dimensions``), with the
exact sites and with the paper's two data-dependent actions on the widest batch that they keep, at the initial weights
and after training by Adam on that batch: towards the outputs of another network of the same form where the batch is
wide, towards random numbers where it is narrow. Float64. Writes ``transitivity.json``, ``.md``, ``.png`` and ``.pdf``
to ``--out``; Ctrl-C stops after the network under way, and the same command goes on from there.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from experiments.lab.image_training import Stopped
from experiments.lab.output_folder import output_folder
from experiments.lab.script import run, save_figure, say, write_results
from experiments.transitivity.networks import CASES, SMOKE, WIDE, Case
from experiments.transitivity.orbit_dimensions import dimensions
from experiments.transitivity.report import markdown, plot
from meta_teleport.cli.terminal import counting_bar, stopping
from meta_teleport.errors import UserError
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.params import Params, norm
from meta_teleport.runs.run import read_json, write_json

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
    losses = copies.losses(inputs, targets)
    gradients = torch.autograd.grad(losses.sum(), list(copies.params.values()))
    return norm(dict(zip(copies.params, gradients, strict=True)))


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


def study(case: Case, seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
    """The rows of one network, before and after training."""
    copies = Ensemble(case.build, seeds, [partial(Adam, lr=RATE)], mean_squares)
    like = {name: p[:1].detach() for name, p in copies.params.items()}
    inputs = torch.stack([case.batch(seed, like) for seed in seeds])
    targets = targets_of(case, inputs)
    rows = measured(case, copies, inputs, targets, "initial")
    for _ in range(steps):
        copies.step(inputs, targets)
    rows += measured(case, copies, inputs, targets, "trained")
    return [{"network": case.name, "actions": list(case.actions), "points": inputs.shape[1], **row} for row in rows]


def collect(cases: Sequence[Case], seeds: int, steps: int, keep: Path) -> list[dict[str, Any]]:
    """All rows; what is finished is kept in a file. Raises ``Stopped`` on Ctrl-C, and ``UserError`` for a file of other
    settings."""
    settings = {"seeds": seeds, "steps": steps, "rate": RATE}
    kept: dict[str, Any] = read_json(keep) if keep.exists() else {**settings, "networks": {}}
    if {name: kept.get(name) for name in settings} != settings:
        raise UserError(f"{keep} belongs to a run with other settings: delete it, or choose another --out")
    done = kept["networks"]
    with stopping() as stop, counting_bar(len(cases)) as show:
        for number, case in enumerate(cases):
            show(number, case.key + " (stopping)" * stop())
            if case.key in done:
                continue
            if stop():
                raise Stopped(f"stopped after {len(done)} networks; the same command goes on from there")
            began = perf_counter()
            done[case.key] = study(case, range(seeds), steps)
            write_json(keep, kept)
            say(f"{case.key}: {perf_counter() - began:.1f} s")
    return [row for case in cases for row in done[case.key]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="four networks, two seeds, few steps, no claim")
    parser.add_argument("--seeds", type=int, help=f"runs per network; default: {SEEDS}")
    parser.add_argument(
        "--out", type=output_folder, default="runs/transitivity", help="folder for results and progress"
    )
    parser.set_defaults(device="cpu")
    args = parser.parse_args()
    seeds = args.seeds or (SMOKE_SEEDS if args.smoke else SEEDS)
    began, cases, steps = perf_counter(), SMOKE if args.smoke else CASES, SMOKE_STEPS if args.smoke else STEPS
    rows = collect(cases, seeds, steps, args.out / "transitivity.progress.json")
    write_results(args, "transitivity", {"seeds": seeds, "steps": steps, "rate": RATE, "rows": rows}, began)
    (args.out / "transitivity.md").write_text(markdown(rows))
    save_figure(plot(rows), args.out / "transitivity.png")
    print(markdown(rows))


if __name__ == "__main__":
    run(main)
