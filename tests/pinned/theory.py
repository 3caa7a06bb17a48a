"""The core of the experiments on theory, small: every statement, transitivity, displacement by shifts of the loss."""

from dataclasses import asdict

import torch
from pinned.store import Values
from waves import placed

from experiments.displacement import run as displacement
from experiments.theory import descent as theory_descent
from experiments.theory import factorization as theory_factorization
from experiments.theory import newton as theory_newton
from experiments.theory import one_teleport as theory_one_teleport
from experiments.theory import quadratics as theory_quadratics
from experiments.theory import stationarity as theory_stationarity
from experiments.theory.one_teleport import follow
from experiments.transitivity import run as transitivity
from experiments.transitivity.networks import Case
from meta_teleport.models import MLP


def statements() -> Values:
    """Rows of the tables of theory.py from a few starts each."""
    generator = torch.Generator().manual_seed(0)
    ellipse, booth = theory_newton.landscapes()[:2]
    problem = theory_stationarity.quadratic(3, generator)
    quick = theory_one_teleport.EXAMPLES[2]
    return {
        "quadratics": theory_quadratics.measure(3, 2, 30)[0],
        "descent": theory_descent.measure(booth, 5, 2)[0],
        "newton": theory_newton.measure(ellipse, 3)[0],
        "stationarity": theory_stationarity.measure(problem, 8),
        "factorization": theory_factorization.measure(10.0, 2, 20)[0],
        "one teleport": asdict(follow(quick.landscape, quick.starts(2, generator), torch.ones(2), 8, 2)),
    }


def level_sets() -> Values:
    """Dimensions of orbits and of the sets that they lie in, before and after training."""
    networks = (("identity", (4, 3, 2), ("GL",)), ("leaky_relu", (4, 3, 3, 2), ("(a)", "(b)")))
    found = []
    for name, widths, actions in networks:

        def make(name: str = name, widths: tuple[int, ...] = widths) -> MLP:
            return placed(MLP(widths, name), torch.initial_seed() % 5000)

        found += transitivity.study(Case(name, make, actions, widths[:1], inputs=60), range(1), 10)["rows"]
    rounding = ("gap", "outside", "actions")
    return {"rows": [{key: value for key, value in row.items() if key not in rounding} for row in found]}


def displacements() -> Values:
    found = displacement.measure(True)
    return {"table": found["table"], "polylines": found["polylines"], "landmarks": found["landmarks"]}
