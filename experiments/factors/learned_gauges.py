"""Learned teleports against gauges written by hand: over plain Adam, and as a part of the pretrained rule.

    python -m experiments.factors.learned_gauges                  both parts; writes learned_gauges.{json,md,png}
    python -m experiments.factors.learned_gauges factorization    the first alone (lora: the second)
    python -m experiments.factors.learned_gauges report           tables and figure of what has been run
    python -m experiments.factors.learned_gauges --smoke          both on toy sizes, in seconds

The problems and the tuning are those of factors.py. None of the rules is tuned, and none has seen problems of this
size: they were meta-trained on 24 x 24 maps of rank 4, or, "of adapters", on transformers half as wide and deep:

    learned teleports, transported       over Adam, whose step size is tuned (adam_teleports.yaml)
    learned rule                         mt.load("factors"): teleports and step lengths (factors.yaml)
    learned rule without teleports       its twin, meta-trained in the same way (factors.yaml, --rule.bases '[]')
    teleports of adapters, transported   over Adam, those of the next one
    learned rule of adapters             teleports and step lengths (adapters.yaml)
"""

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.factors.adapters import adaptation
from experiments.factors.report import markdown, plot
from experiments.factors.run import (
    ADAM_LRS,
    LORA_GRID,
    LORA_LRS,
    LORA_SIZES,
    LORA_STEPS,
    LORA_TUNING,
    PROBLEMS,
    SCALED_LRS,
    SMOKE_FAMILY,
    SMOKE_SIZES,
    STEPS,
    adam,
    collect,
    measured,
    uneven,
)
from experiments.factors.sweeps import Benchmark, Entry
from experiments.factors.teleported_training import Method
from experiments.lab.rules import ScaledGradientDescent
from experiments.lab.script import parser, run
from experiments.lab.tables import interval, table
from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.errors import UserError
from meta_teleport.evaluation.statistics import compare
from meta_teleport.learned.serialization import load
from meta_teleport.rules.classical import Adam
from meta_teleport.tasks.factorization import Factorization
from meta_teleport.tasks.family import SPLITS
from meta_teleport.teleportation.gauges import principal_axes

REGIMES: dict[str, dict[str, Any]] = {"noiseless": {}, "noisy": {"noise": 0.1}, "missing": {"missing": 0.5}}
RULES = Path(__file__).parent / "results" / "rules"
GRID = ((0.5, 1.0), (0.5, 2.0), (0.75, 1.0), (0.75, 2.0))
BETA2 = 0.95
LORA_BETA2 = 0.999
OF_ADAPTERS = ("teleports of adapters, transported", "learned rule of adapters")
LEARNED = ("learned rule", "learned teleports, transported", *OF_ADAPTERS)


def learned(rule: Equivariant, steps: int, lr: Tensor, beta2: float) -> Equivariant:
    """Adam with the teleports of ``rule``, stretched to last for ``steps`` steps."""
    return rule.for_horizon(steps).over(Adam(lr, beta2=beta2))


def entries(rules: Path, steps: int, beta2: float, lrs: Any, grid: Any) -> dict[str, Entry]:
    """Adam, gauges and learned teleports over it, with the same step sizes to choose from."""
    teleports = equivariant(rules / "adam_teleports.safetensors")
    methods = {
        "Adam": adam((beta2,)),
        "principal axes, transported": adam((beta2,), gauge=principal_axes),
        "tuned gauge, transported": uneven(grid, (beta2,)),
        "learned teleports, transported": [Method(partial(learned, teleports, steps), arguments={"beta2": beta2})],
    }
    return {name: Entry(variants, lrs) for name, variants in methods.items()}


def whole(rules: Path, steps: int) -> dict[str, Entry]:
    """The learned rule and its twin, which have no settings, and scaled gradient descent. Not for adapters here: the
    rule reads activations, which these batches of transformers do not give."""
    named = {
        "learned rule": equivariant("factors"),
        "learned rule without teleports": equivariant(rules / "without_teleports.safetensors"),
    }
    methods = {name: Method(partial(lasting, rule, steps), falls=False) for name, rule in named.items()}
    scaled = {"scaled gradient descent": Entry([Method(ScaledGradientDescent)], SCALED_LRS)}
    return {name: Entry([method], (1.0,)) for name, method in methods.items()} | scaled


def of_adapters(rules: Path, steps: int, beta2: float, lrs: Any) -> dict[str, Entry]:
    """What has learned from smaller transformers: its teleports over Adam, and all of it."""
    rule = equivariant(rules / "adapters.safetensors")
    teleports = Method(partial(learned, rule, steps), arguments={"beta2": beta2})
    alone = Method(partial(lasting, rule, steps), falls=False)
    return dict(zip(OF_ADAPTERS, (Entry([teleports], lrs), Entry([alone], (1.0,))), strict=True))


def paired(content: dict[str, Any]) -> str:
    """What is learned against what is not: ratios of errors problem by problem, geometric means with intervals."""
    parts: dict[str, dict[str, Any]] = {}
    if "factorization" in content:
        parts |= content["factorization"]["results"]
    if "lora" in content:
        parts["LoRA"] = content["lora"]["results"]["adapters"]
    lines: list[list[str]] = []
    for name, scopes in parts.items():
        for reports in scopes.values():
            errors = {method: torch.tensor(report["errors"]).unsqueeze(0) for method, report in reports.items()}
            for a, b in product(LEARNED, set(errors) - set(LEARNED)):
                if a in errors:
                    found = compare(a, b, errors, 0, torch.Generator().manual_seed(0))
                    ratio = interval((10**x for x in (found.log10_ratio, *found.ci95)), ".3g")
                    lines.append([name, a, b, ratio, f"{found.win_rate:.0%}"])
    return table(["problem", "learned", "against", "ratio of errors", "lower error"], sorted(lines))


def lasting(rule: Equivariant, steps: int, lr: Tensor) -> Equivariant:
    """The rule as it is, stretched to last for ``steps`` steps; it has no step size."""
    return rule.for_horizon(steps)


def equivariant(name: str | Path) -> Equivariant:
    """A saved rule. Raises ``UserError`` if it is none that teleports factors of every size."""
    rule = load(name)
    if not isinstance(rule, Equivariant):
        raise UserError(f"{name} is a {type(rule).__name__}: give an equivariant rule")
    return rule


def factorization(rules: Path, smoke: bool) -> dict[str, Any]:
    """Per regime the report of every method."""
    found, steps = {}, 20 if smoke else STEPS
    grid = GRID[:: 4 if smoke else 1]
    for regime, options in REGIMES.items():
        family = Factorization(**(SMOKE_FAMILY if smoke else {}), **options)
        generator = torch.Generator().manual_seed(0)
        tuning, fresh = (family.sample(3 if smoke else PROBLEMS, generator, split) for split in SPLITS)
        benchmark = Benchmark(tuning, fresh, steps, lambda tasks: tasks.relative_error)
        scopes = {f"beta2 = {BETA2}": lambda method: True}
        methods = entries(rules, steps, BETA2, ADAM_LRS, grid) | whole(rules, steps)
        found[regime] = collect(regime, methods, benchmark, scopes)
    return found


def lora(rules: Path, smoke: bool) -> dict[str, Any]:
    """The report of every method on adapters, and how good the pre-trained models are."""
    sizes, counts = (SMOKE_SIZES, (2, 3)) if smoke else (LORA_SIZES, (LORA_TUNING, PROBLEMS))
    (tuning, _), (fresh, excess) = (adaptation(sizes, count, seed) for seed, count in enumerate(counts))
    steps = 20 if smoke else LORA_STEPS
    benchmark = Benchmark(tuning, fresh, steps, lambda tasks: tasks.excess, 10)
    scopes = {f"beta2 = {LORA_BETA2}": lambda method: True}
    methods = entries(rules, steps, LORA_BETA2, LORA_LRS, LORA_GRID) | of_adapters(rules, steps, LORA_BETA2, LORA_LRS)
    return {
        "pretrained": float(excess.quantile(0.5)),
        "before": float(fresh.excess(fresh.params).quantile(0.5)),
        "adapters": collect("LoRA", methods, benchmark, scopes),
    }


PARTS = {"factorization": factorization, "lora": lora}


def main() -> None:
    made = parser("learned_gauges", __doc__)
    made.add_argument("part", nargs="?", choices=("factorization", "lora", "all", "report"), default="all")
    made.add_argument("--rules", type=Path, default=RULES, help="folder of the rules that are not in the package")
    args = made.parse_args()
    parts = {name: partial(part, args.rules, args.smoke) for name, part in PARTS.items()}
    content = measured(parts, args.part, args.out / "learned_gauges.json")
    tables = f"{paired(content)}\n\n{markdown(content)}"
    (args.out / "learned_gauges.md").write_text(tables)
    plot(content, args.out / "learned_gauges.png")
    print(tables)


if __name__ == "__main__":
    run(main, denormals=True)
