"""Learned teleports over plain Adam, against the gauges written by hand.

    python experiments/learned_gauges.py                  both parts; writes learned_gauges.{json,md,png}
    python experiments/learned_gauges.py factorization    the first alone (lora: the second)
    python experiments/learned_gauges.py --smoke          both on toy sizes, in seconds

The problems and the tuning are those of factors.py. The learned teleports are those of the pretrained rule, every 5
steps, its updates replaced by those of Adam: meta-trained on 24 x 24 problems of rank 4, and on no transformer.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from adapters import adaptation
from factor_report import markdown, plot
from factor_sweeps import Benchmark, Entry
from factors import (
    ADAM_LRS,
    LORA_GRID,
    LORA_LRS,
    LORA_SIZES,
    LORA_STEPS,
    LORA_TUNING,
    PROBLEMS,
    SMOKE_FAMILY,
    SMOKE_SIZES,
    STEPS,
    adam,
    collect,
    uneven,
)
from teleported_training import Method
from torch import Tensor

from meta_teleport.learned.classical import Adam
from meta_teleport.learned.equivariant import Equivariant
from meta_teleport.learned.load import load
from meta_teleport.record import provenance, read_json, write_json
from meta_teleport.tasks.factorization import Factorization
from meta_teleport.tasks.family import SPLITS
from meta_teleport.teleportation.gauges import principal_axes

REGIMES: dict[str, dict[str, Any]] = {"noiseless": {}, "noisy": {"noise": 0.1}, "missing": {"missing": 0.5}}
GRID = ((0.5, 1.0), (0.5, 2.0), (0.75, 1.0), (0.75, 2.0))
BETA2 = 0.95
LORA_BETA2 = 0.999


def learned(rule: Equivariant, steps: int, lr: Tensor, beta2: float) -> Equivariant:
    """Adam with the teleports of ``rule``, stretched to last for ``steps`` steps."""
    return rule.lasting(steps).over(Adam(lr, beta2=beta2))


def entries(rule: Equivariant, steps: int, beta2: float, lrs: Any, grid: Any) -> dict[str, Entry]:
    """Adam, the two gauges and the learned teleports, with the same step sizes to choose from."""
    over = Method(partial(learned, rule, steps), arguments={"beta2": beta2})  # type: ignore[arg-type]
    methods = {
        "Adam": adam((beta2,)),
        "principal axes, transported": adam((beta2,), gauge=principal_axes),
        "tuned gauge, transported": uneven(grid, (beta2,)),
        "learned teleports, transported": [over],
    }
    return {name: Entry(variants, lrs) for name, variants in methods.items()}


def factorization(rule: Equivariant, smoke: bool) -> dict[str, Any]:
    """Per regime the report of every method."""
    found, steps = {}, 20 if smoke else STEPS
    grid = GRID[:: 4 if smoke else 1]
    for regime, options in REGIMES.items():
        family = Factorization(**(SMOKE_FAMILY if smoke else {}), **options)
        generator = torch.Generator().manual_seed(0)
        tuning, fresh = (family.sample(3 if smoke else PROBLEMS, generator, split) for split in SPLITS)
        benchmark = Benchmark(tuning, fresh, steps, lambda tasks: tasks.relative_error)
        scopes = {f"beta2 = {BETA2}": lambda method: True}
        found[regime] = collect(regime, entries(rule, steps, BETA2, ADAM_LRS, grid), benchmark, scopes)
    return found


def lora(rule: Equivariant, smoke: bool) -> dict[str, Any]:
    """The report of every method on adapters, and how good the pre-trained models are."""
    sizes, counts = (SMOKE_SIZES, (2, 3)) if smoke else (LORA_SIZES, (LORA_TUNING, PROBLEMS))
    (tuning, _), (fresh, excess) = (adaptation(sizes, count, seed) for seed, count in enumerate(counts))
    steps = 20 if smoke else LORA_STEPS
    benchmark = Benchmark(tuning, fresh, steps, lambda tasks: tasks.excess, 10)
    scopes = {f"beta2 = {LORA_BETA2}": lambda method: True}
    return {
        "pretrained": float(excess.quantile(0.5)),
        "before": float(fresh.excess(fresh.params).quantile(0.5)),
        "adapters": collect("LoRA", entries(rule, steps, LORA_BETA2, LORA_LRS, LORA_GRID), benchmark, scopes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("factorization", "lora", "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path("runs/learned_gauges"))
    parser.add_argument("--rule", default="pretrained", help="a saved equivariant rule, by name or path")
    parser.add_argument("--smoke", action="store_true", help="toy sizes, seconds; no claim")
    args = parser.parse_args()
    rule, path = load(args.rule), args.out / "learned_gauges.json"
    if not isinstance(rule, Equivariant):
        parser.error(f"{args.rule} is a {type(rule).__name__}: give an equivariant rule")
    content = read_json(path) if path.exists() else {}
    for name, part in (("factorization", factorization), ("lora", lora)):
        if args.part in (name, "all"):
            began = time.perf_counter()
            content[name] = {"results": part(rule, args.smoke)}
            content[name] |= {"seconds": round(time.perf_counter() - began), "provenance": provenance()}
            args.out.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
    (args.out / "learned_gauges.md").write_text(markdown(content))
    plot(content, args.out / "learned_gauges.png")
    print(markdown(content))


if __name__ == "__main__":
    main()
