"""The core of the experiments on families of problems, small: sweeps, tuning, intervals, learned gauges, MAML."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pinned.store import Values
from waves import wave, waves

from experiments.factors.learned_gauges import RULES, equivariant, lasting, learned
from experiments.factors.run import adam, uneven
from experiments.factors.sweeps import Benchmark, Entry, results
from experiments.factors.teleported_training import Method
from experiments.held_out.members import Setting
from experiments.held_out.methods import contestants
from experiments.held_out.runs import Outcome
from experiments.held_out.statistics import against, numbers
from experiments.held_out.tuning import settled, tuned
from experiments.lab.intervals import compare_over_seeds
from experiments.lab.rules import ScaledGradientDescent
from experiments.lab.timing import Clock, Work
from experiments.maml.report import summary
from experiments.maml.runs import measure, tasks_of
from experiments.maml.training import Plan, meta_train
from meta_teleport.rules.classical import Adam
from meta_teleport.tasks.factorization import Factorization, FactorizationTasks
from meta_teleport.tasks.family import SPLITS, Split
from meta_teleport.tasks.few_shot import FewShot, FewShotTasks
from meta_teleport.tasks.regression import Regression, RegressionTasks
from meta_teleport.teleportation.gauges import principal_axes


def factors(count: int, seed: int) -> FactorizationTasks:
    """Pairs of factors at weights by a formula; the targets are drawn."""
    family = Factorization(rank=3, inputs=6, outputs=5, points=64, batch=8)
    drawn = family.sample(count, torch.Generator().manual_seed(seed), dtype=torch.float64)
    return FactorizationTasks(_stacked(drawn.params, count, seed), drawn.data, drawn.batch)


def fits(count: int, seed: int) -> RegressionTasks:
    """Small regressions with data and weights by formulas."""
    family = Regression(width=4, points=6, data="gaussian", labels="random", allow_drift=True)
    drawn = family.sample(count, torch.Generator().manual_seed(0), dtype=torch.float64)
    data = {
        name: wave(*t.shape, seed=seed + i) for i, (name, t) in enumerate(drawn.data.items()) if t.is_floating_point()
    }
    return RegressionTasks(
        _stacked(drawn.params, count, seed), {**drawn.data, **data}, drawn.model, drawn.network_symmetry, drawn.batch
    )


def _stacked(like: Any, count: int, seed: int) -> Any:
    own = [waves({name: p[0] for name, p in like.items()}, seed=seed + 10 * i) for i in range(count)]
    return {name: torch.stack([task[name] for task in own]) for name in like}


def sweeps() -> Values:
    """Step sizes and gauges chosen on three problems and reported on five, with intervals."""
    benchmark = Benchmark(factors(3, 0), factors(5, 100), 20, lambda tasks: tasks.relative_error, 4)
    lines = {
        "Adam": Entry(adam((0.95, 0.999)), (0.01, 0.03, 0.1)),
        "gauge": Entry(adam((0.95,), gauge=principal_axes), (0.03, 0.1)),
        "tuned gauge": Entry(uneven([(0.5, 1.0), (0.75, 2.0)], (0.95,)), (0.03, 0.1)),
        "random": Entry([Method(Adam, principal_axes, randomized=True)], (0.03, 0.1)),
        "scaled": Entry([Method(ScaledGradientDescent)], (0.1, 0.3)),
    }
    return dict(results(lines, benchmark, {"all": lambda method: True}))


def gauges() -> Values:
    """Learned teleports over Adam and learned rules beside gauges written by hand."""
    benchmark = Benchmark(factors(2, 0), factors(3, 100), 15, lambda tasks: tasks.relative_error, 3)
    over_adam, whole = (equivariant(name).double() for name in (RULES / "adam_teleports.safetensors", "factors"))
    lines = {
        "Adam": Entry(adam((0.95,)), (0.03, 0.1)),
        "learned teleports": Entry([Method(partial(learned, over_adam, 15), arguments={"beta2": 0.95})], (0.03, 0.1)),
        "learned rule": Entry([Method(partial(lasting, whole, 15), falls=False)], (1.0,)),
    }
    return dict(results(lines, benchmark, {"all": lambda method: True}))


def held_out() -> Values:
    """Every method of a family of regressions tuned, and its best settings with their score."""
    setting, found = Setting("small", (), (), horizon=6), {}
    tasks, proof = fits(3, 0), fits(2, 50)
    with TemporaryDirectory() as folder:
        for number, contestant in enumerate(contestants(tasks, setting)):
            best = tuned(contestant, tasks, proof, setting, 6, Path(folder) / f"{number}.json")
            found[contestant.name] = {"score": best["score"], **settled(contestant, best)}
    return found


def comparisons() -> Values:
    """Tables and intervals of invented outcomes: three meta-seeds of a rule, and a method without."""
    steps, seconds = torch.arange(31), torch.linspace(0, 3, 31, dtype=torch.float64)
    extra = {"highest": 2.0, "failed": 1, "undone": 3, "settings": {"lr": 0.1}}

    def outcome(seed: int, rate: float) -> Outcome:
        decay = (-rate * steps.double()[:, None]).exp() * (1 + 0.3 * wave(31, 6, seed=seed)).abs()
        return Outcome(decay, steps, rate * seconds, extra)

    curves = {"rule": [outcome(i, 0.5) for i in range(3)], "Adam": [outcome(9, 0.3)]}
    curves["Adam, x3"] = [Outcome(outcome(10, 0.3).values[-1:], steps[-1:] * 3, seconds[-1:] * 3, extra)]
    a, b = (wave(4, 6, seed=seed).exp() for seed in (1, 2))
    return {
        "numbers": numbers("rule", curves, 10, False),
        "against": against("Adam", curves, 10),
        "over seeds": [compare_over_seeds(a, b), compare_over_seeds(a, b[:1]), compare_over_seeds(a, b, True)],
    }


class Digits(FewShot):
    """Few-shot tasks on digits in float64."""

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
    ) -> FewShotTasks:
        tasks = super().sample(count, generator, split, dtype, device)
        params = _stacked(tasks.params, count, generator.initial_seed() % 100)
        return FewShotTasks(params, tasks.data, tasks.model, tasks.network_symmetry)


def maml() -> Values:
    """Three updates of every run, what their inner loops then reach, and the intervals over two meta-seeds."""
    families = [Digits(shots=2, queries=3, hidden=(6, 5), start=seed) for seed in range(2)]
    plan = Plan(rates=(0.1,), updates=3, tasks=2, steps=2)
    with TemporaryDirectory() as folder:
        runs, _ = meta_train(families, plan, Path(folder) / "kept.safetensors", "")
    found = measure(runs.select(range(len(runs.rates))), tasks_of(families, 3, 1000, SPLITS[1]), 2)
    kinds = len(plan.teleports)
    loss, accuracy = (column.unflatten(1, (kinds, 2)) for column in (found.loss, found.accuracy))
    names = ["MAML", *plan.teleports[1:]]
    curves = {name: (loss[:, i], accuracy[:, i]) for i, name in enumerate(names)}
    return {
        "weights": [p.flatten(1)[:, :3] for p in runs.params.values()],
        "loss": found.loss,
        "growth": found.growth,
        "summary": summary(curves, {name: {} for name in names}, 1),
    }


class Steady(Clock):
    """A clock whose bursts last what a formula says."""

    def burst(self, work: Work, run: Any) -> float:
        return float(run()) / work.units


def overhead() -> Values:
    """Ratios of invented times, with their interval."""
    times = {name: iter((1 + 0.1 * wave(40, seed=seed)).tolist()) for seed, name in enumerate(("slow", "fast"))}
    slow, fast = (
        Work(lambda name=name: lambda: next(times[name]), units) for name, units in (("slow", 1), ("fast", 2))
    )
    return Steady(bursts=6, seconds=1.0).compare(slow, fast)
