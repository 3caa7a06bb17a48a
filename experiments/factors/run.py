"""Teleports of low-rank factors: Adam with and without, on stochastic factorisation and on LoRA adapters.

    python -m experiments.factors.run                  both parts; writes factors.json, .md and .png into runs/factors
    python -m experiments.factors.run factorization    the first alone (lora: the second)
    python -m experiments.factors.run --smoke          both on toy sizes, in seconds

Every 10 steps the factors B A are moved to a gauge (``meta_teleport.teleportation.gauges``), and Adam's two moments
with them, or not. Step sizes, Adam's beta2 and the constants of the tuned gauge are chosen on tuning problems, method
by method, and reported on 20 fresh ones; ``random elements`` are as large as the teleports that they replace.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.factors.adapters import adaptation
from experiments.factors.report import markdown, plot
from experiments.factors.sweeps import Allowed, Benchmark, Entry, results
from experiments.factors.teleported_training import Method
from experiments.lab.progress import say
from experiments.lab.rules import ScaledGradientDescent
from experiments.lab.script import parser, run
from meta_teleport.params import Params
from meta_teleport.rules.classical import Adam, Momentum
from meta_teleport.runs.provenance import provenance
from meta_teleport.runs.run import read_json, write_json
from meta_teleport.symmetry.site import Site
from meta_teleport.tasks.factorization import Factorization
from meta_teleport.tasks.family import SPLITS
from meta_teleport.tasks.transformer import Sizes
from meta_teleport.teleportation.gauges import balanced, principal_axes, whitened_producers

PROBLEMS, STEPS = 20, 600
DEFAULT_BETA2, BETA2 = 0.999, (0.95, 0.99, 0.999)
ADAM_LRS = (0.005, 0.0075, 0.01, 0.015, 0.022, 0.033, 0.05, 0.075, 0.11, 0.17)
MOMENTUM_LRS = (0.001, 0.0015, 0.0022, 0.0033, 0.005, 0.0075, 0.011, 0.015, 0.02)
SCALED_LRS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
EXPONENTS, SCALES = (0.5, 0.625, 0.75, 0.875), (1.0, 2.0, 4.0)
SCOPES: dict[str, Allowed] = {
    "beta2 = 0.999": lambda method: method.arguments.get("beta2", DEFAULT_BETA2) == DEFAULT_BETA2,
    "beta2 tuned": lambda method: True,
}
REGIMES: dict[str, dict[str, Any]] = {"noiseless": {}, "noisy": {"noise": 0.1}}
SIDE_REGIMES: dict[str, dict[str, Any]] = {
    "condition 1": {"condition": 1.0},
    "condition 10": {"condition": 10.0},
    "condition 1000": {"condition": 1000.0},
    "isotropic inputs": {"anisotropy": 1.0},
    "full batch": {"batch": None},
}
SIDE_ENTRIES = ("Adam", "principal axes, transported", "scaled gradient descent")

LORA_SIZES = Sizes()
LORA_TUNING, LORA_STEPS = 8, 300
LORA_SCOPES: dict[str, Allowed] = {"beta2 = 0.999": lambda method: True}
LORA_LRS = (0.0075, 0.012, 0.02, 0.033)
LORA_GRID = ((0.5, 2.0), (0.75, 1.0), (0.75, 2.0))
SMOKE_FAMILY: dict[str, Any] = {"rank": 2, "inputs": 6, "outputs": 5, "points": 64, "batch": 8}
SMOKE_SIZES = Sizes(width=8, layers=1, heads=2, rank=2, batch=4, points=32, test=8, pretraining_steps=10)


def adam(betas: Sequence[float] = BETA2, **options: Any) -> list[Method]:
    """Adam with each beta2."""
    return [Method(Adam, arguments={"beta2": beta2}, **options) for beta2 in betas]


def uneven(grid: Sequence[tuple[float, float]], betas: Sequence[float] = BETA2) -> list[Method]:
    """Adam with principal axes of every exponent and scale: ``A = S^e v^T / c``, ``B = u c S^(1 - e)``."""
    return [
        replace(method, gauge=partial(principal_axes, exponent=e, scale=c), recorded={"exponent": e, "scale": c})
        for e, c in grid
        for method in adam(betas)
    ]


def teleports(betas: Sequence[float] = BETA2) -> dict[str, list[Method]]:
    """Adam, the ways to teleport it, and their controls."""
    return {
        "Adam": adam(betas),
        "Adam, moments reset": adam(betas, gauge=stay, state="reset"),
        "principal axes, transported": adam(betas, gauge=principal_axes),
        "principal axes, reset": adam(betas, gauge=principal_axes, state="reset"),
        "principal axes, kept": adam(betas, gauge=principal_axes, state="keep"),
        "balanced, transported": adam(betas, gauge=balanced),
        "random elements, transported": adam(betas, gauge=principal_axes, randomized=True),
    }


def stay(site: Site, params: Params) -> Tensor:
    """The gauge that moves nothing: resets the moments at the same steps, without a teleport."""
    like = params[site.parameters[0]]
    return site.group.identity(len(like), dtype=like.dtype, device=like.device)


def factorization_entries(smoke: bool) -> dict[str, Entry]:
    """All methods of the first part."""
    grid = [(e, c) for e in EXPONENTS for c in SCALES]
    methods = {
        **teleports(),
        "whitened A, transported": adam(gauge=whitened_producers),
        "tuned gauge, transported": uneven(grid[:2] if smoke else grid, (min(BETA2), DEFAULT_BETA2)),
    }
    return {
        **{name: Entry(variants, ADAM_LRS) for name, variants in methods.items()},
        "momentum": Entry([Method(Momentum)], MOMENTUM_LRS),
        "scaled gradient descent": Entry([Method(ScaledGradientDescent)], SCALED_LRS),
    }


def lora_entries() -> dict[str, Entry]:
    """All methods of the second part, with torch's default beta2."""
    betas = (DEFAULT_BETA2,)
    methods = {**teleports(betas), "tuned gauge, transported": uneven(LORA_GRID, betas)}
    return {name: Entry(variants, LORA_LRS) for name, variants in methods.items()}


def factorization(smoke: bool) -> dict[str, Any]:
    """Per regime and scope, the report of every method."""
    entries, found = factorization_entries(smoke), {}
    for regime, options in (REGIMES if smoke else REGIMES | SIDE_REGIMES).items():
        family = Factorization(**(SMOKE_FAMILY if smoke else {}), **options)
        generator, count = torch.Generator().manual_seed(0), 3 if smoke else PROBLEMS
        tuning, fresh = (family.sample(count, generator, split) for split in SPLITS)
        benchmark = Benchmark(tuning, fresh, 20 if smoke else STEPS, lambda tasks: tasks.relative_error)
        chosen = entries if regime in REGIMES else {name: entries[name] for name in SIDE_ENTRIES}
        found[regime] = collect(regime, chosen, benchmark, SCOPES)
    return found


def lora(smoke: bool) -> dict[str, Any]:
    """The report of every method on adapters, and how good the pre-trained models are."""
    sizes, counts = (SMOKE_SIZES, (2, 3)) if smoke else (LORA_SIZES, (LORA_TUNING, PROBLEMS))
    say(f"pre-training {sum(counts)} models")
    (tuning, _), (fresh, excess) = (adaptation(sizes, count, seed) for seed, count in enumerate(counts))
    benchmark = Benchmark(tuning, fresh, 20 if smoke else LORA_STEPS, lambda tasks: tasks.excess, 10)
    return {
        "sizes": asdict(sizes),
        "pretrained": float(excess.quantile(0.5)),
        "before": float(fresh.excess(fresh.params).quantile(0.5)),
        "adapters": collect("LoRA", lora_entries(), benchmark, LORA_SCOPES),
    }


def collect(title: str, entries: dict[str, Entry], benchmark: Benchmark, scopes: dict[str, Allowed]) -> dict[str, Any]:
    """The reports by scope and method, with a line on standard error for each method and the time left."""
    began, runs, done = time.perf_counter(), {name: e.runs for name, e in entries.items()}, 0
    found: dict[str, Any] = {scope: {} for scope in scopes}
    for name, reports in results(entries, benchmark, scopes):
        done += runs[name]
        spent = time.perf_counter() - began
        left = spent * (sum(runs.values()) - done) / done
        medians = ", ".join(f"{report['median']:.2e}" for report in reports.values())
        say(f"{title}: {name}: {medians} ({spent:.0f} s, about {left:.0f} s left)")
        for scope, report in reports.items():
            found[scope][name] = report
    return found


def measured(parts: Mapping[str, Callable[[], dict[str, Any]]], chosen: str, path: Path) -> dict[str, Any]:
    """What the chosen parts, or "all", give, beside what the file ``path`` holds of the others; kept in it."""
    content = read_json(path) if path.exists() else {}
    for name, part in parts.items():
        if chosen in (name, "all"):
            began = time.perf_counter()
            content[name] = {"results": part()}
            content[name] |= {"seconds": round(time.perf_counter() - began), "provenance": provenance()}
            write_json(path, content)
    return content


def main() -> None:
    made = parser("factors", __doc__)
    made.add_argument("part", nargs="?", choices=("factorization", "lora", "all"), default="all")
    args = made.parse_args()
    parts = {"factorization": partial(factorization, args.smoke), "lora": partial(lora, args.smoke)}
    content = measured(parts, args.part, args.out / "factors.json")
    (args.out / "factors.md").write_text(markdown(content))
    plot(content, args.out / "factors.png")
    print(markdown(content))


if __name__ == "__main__":
    run(main, denormals=True)
