"""Known answers about teleportation, each as a table and a figure.

    python -m experiments.theory.run                       all statements, about 4 minutes of one core
    python -m experiments.theory.run --only newton         one of them
    python -m experiments.theory.run --smoke               toy sizes, in seconds

Writes ``theory.json`` and ``theory_<statement>.png`` to ``--out``. Float64 throughout; every seed is fixed.
"""

import time
from types import ModuleType
from typing import Any

from matplotlib.figure import Figure

from experiments.lab.script import parser, run
from experiments.theory import descent as theory_descent
from experiments.theory import factorization as theory_factorization
from experiments.theory import newton as theory_newton
from experiments.theory import one_teleport as theory_one_teleport
from experiments.theory import quadratics as theory_quadratics
from experiments.theory import stationarity as theory_stationarity
from experiments.theory.statement import table
from meta_teleport.cli.terminal import show
from meta_teleport.runs.provenance import provenance
from meta_teleport.runs.run import write_json

STATEMENTS: dict[str, ModuleType] = {
    "quadratics": theory_quadratics,
    "descent": theory_descent,
    "stationarity": theory_stationarity,
    "newton": theory_newton,
    "factorization": theory_factorization,
    "one_teleport": theory_one_teleport,
}
SIZE, DPI = (9.0, 3.6), 110


def main() -> None:
    made = parser("theory", __doc__)
    made.add_argument("--only", choices=list(STATEMENTS), nargs="+", help="some of the statements")
    args = made.parse_args()
    results: dict[str, Any] = {"provenance": provenance(), "smoke": args.smoke}
    for name in args.only or STATEMENTS:
        began = time.perf_counter()
        statement = STATEMENTS[name].run(args.smoke)
        seconds = round(time.perf_counter() - began, 1)
        show(table(statement))
        results[name] = {"title": statement.title, "seconds": seconds, "rows": statement.rows}
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        STATEMENTS[name].draw(statement, figure)
        figure.savefig(args.out / f"theory_{name}.png")
        write_json(args.out / "theory.json", results)


if __name__ == "__main__":
    run(main, denormals=True)
