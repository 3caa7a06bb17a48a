"""What the rules of held_out.py are compared with, and how it is tuned: on training tasks of each member, once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from experiments.held_out.least_squares import LevenbergMarquardt
from experiments.held_out.members import Setting
from experiments.lab.rules import Falling, Gauge, InGauge, Muon, ScaledGradientDescent, Shampoo
from meta_teleport.evaluation.controls import closed_form_controls
from meta_teleport.evaluation.methods import Interventions, Method, ascent, baseline
from meta_teleport.evaluation.tuning import decades
from meta_teleport.rules.classical import Adam, GradientDescent, Momentum
from meta_teleport.rules.rule import Rule
from meta_teleport.rules.wrappers import Still
from meta_teleport.tasks.factorization import FactorizationTasks
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.functions import FunctionTasks
from meta_teleport.tasks.regression import RegressionTasks
from meta_teleport.teleportation.gauges import balanced, principal_axes

RESIDUALS, WIDEST_ROOT = 400, 100
GAUGES: dict[str, list[Gauge]] = {
    "Adam, balanced gauge": [balanced],
    "Adam, principal axes": [principal_axes],
    "Adam, tuned gauge": [partial(principal_axes, exponent=e, scale=c) for e in (0.5, 0.75) for c in (1.0, 2.0)],
}
BETA2 = (0.95, 0.999)
CLOSED_FORM = {"whitening": "hand-written teleporter", "last-layer-solve": "last layer solved"}

Settings = Mapping[str, Any]
Build = Callable[[Settings, Tasks, int], Method]


@dataclass(frozen=True)
class Contestant:
    """A method and the grids its settings are tuned over; ``build(settings, tasks, steps)`` takes a number or a tensor
    ``(tasks,)`` for each of ``axes``, and a single value for each of ``choices``.

    ``limit``: on how many held-out tasks it runs, as many as there are by default; ``longest``: how many horizons.
    """

    name: str
    build: Build
    axes: dict[str, list[float]] = field(default_factory=dict)
    choices: dict[str, Sequence[Any]] = field(default_factory=dict)
    limit: int | None = None
    longest: int = 10


def contestants(tasks: Tasks, setting: Setting) -> list[Contestant]:
    """All methods that exist for these tasks but the rules themselves and the controls in closed form."""
    plain: dict[str, tuple[Callable[..., Rule], list[float]]] = {
        "GD": (GradientDescent, decades(-3 if setting.stochastic else -6, 1, 3)),
        "momentum": (Momentum, decades(-4 if setting.stochastic else -7, 0, 3)),
        "Adam": (Adam, decades(-3.5, 0, 3)),
    }
    matrices = all(p.ndim == 3 for p in tasks.params.values()) or setting.stochastic
    if matrices:
        plain["Muon"] = (Muon, decades(-3, 0.5, 3))
        if all(max(p.shape[1:]) <= WIDEST_ROOT for p in tasks.params.values()):
            plain["Shampoo"] = (Shampoo, decades(-3.5, 0, 3))
    if isinstance(tasks, FactorizationTasks):
        plain["scaled GD"] = (ScaledGradientDescent, decades(-1.5, 0, 6))
    found = [
        Contestant(
            name, partial(_plain, rule, setting), {"lr": grid}, {"beta2": BETA2} if _tunes(name, setting) else {}
        )
        for name, (rule, grid) in plain.items()
    ]
    if setting.stochastic:
        exact = all(site.exact and site.group.has_gauges for site in tasks.symmetry.sites)
        found += gauged() if exact else []
    found.append(teleported("Adam", Adam, setting, decades(-3, 0, 2)))
    if isinstance(tasks, FunctionTasks):
        found.append(teleported("GD", GradientDescent, setting, decades(-6, 0, 2)))
        found.append(teleported("momentum", Momentum, setting, decades(-7, -1, 2)))
    if not setting.stochastic:
        found.append(
            Contestant("GD after a warm-up step", _warmed_up, {"warmup_lr": decades(-6, 1, 1), "lr": decades(-5, 1, 2)})
        )
        found.append(Contestant("L-BFGS", lambda settings, tasks, steps: baseline("lbfgs", {}, torch.Generator())))
    if isinstance(tasks, RegressionTasks) and not setting.stochastic and residuals(tasks) <= RESIDUALS:
        found.append(Contestant("Levenberg-Marquardt", _damped, {}, {"start": (1e-6, 1e-3, 1.0)}, 16, 3))
    return found


def residuals(tasks: RegressionTasks) -> int:
    """How many numbers one task has to fit."""
    return tasks.data["labels"][0].numel()


def gauged() -> list[Contestant]:
    """Adam with a teleport to a gauge every 10 steps."""

    def build(settings: Settings, tasks: Tasks, steps: int) -> Method:
        adam = Adam(settings["lr"], beta2=settings["beta2"])
        return _method("gauge", InGauge(Falling(adam, steps), settings["gauge"]), settings)

    grid = decades(-3, -0.5, 4)
    return [Contestant(name, build, {"lr": grid}, {"gauge": gauges, "beta2": BETA2}) for name, gauges in GAUGES.items()]


def teleported(name: str, rule: Callable[..., Rule], setting: Setting, grid: list[float]) -> Contestant:
    """``rule`` with teleports that raise the gradient norm, at the schedules of Zhao et al. 2022 and 2024."""
    horizon = setting.horizon
    schedules = [tuple(range(min(5, horizon))), tuple(range(0, horizon, 10))]

    def build(settings: Settings, tasks: Tasks, steps: int) -> Method:
        made = rule(settings["lr"])
        interventions = Interventions(settings["at"], ascent(settings["size"]))
        falling = Falling(made, steps) if setting.stochastic else made
        return replace(_method("ascent", falling, settings), interventions=interventions)

    axes = {"lr": grid, "size": [3e-3, 3e-2, 3e-1]}
    return Contestant(f"{name}, gradient-norm teleport", build, axes, {"at": schedules})


def closed_form(tasks: Tasks) -> list[Method]:
    """The controls without settings."""
    return [replace(method, name=CLOSED_FORM[method.name]) for method in closed_form_controls(tasks)]


def _tunes(name: str, setting: Setting) -> bool:
    return name == "Adam" and setting.stochastic


def _plain(rule: Callable[..., Rule], setting: Setting, settings: Settings, tasks: Tasks, steps: int) -> Method:
    made = rule(**settings)
    return _method("plain", Falling(made, steps) if setting.stochastic else made, settings)


def _warmed_up(settings: Settings, tasks: Tasks, steps: int) -> Method:
    return _method("warm-up", GradientDescent(settings["lr"], 1, settings["warmup_lr"]), settings)


def _damped(settings: Settings, tasks: Tasks, steps: int) -> Method:
    interventions = Interventions(tuple(range(steps)), LevenbergMarquardt(settings["start"]), teleports=False)
    return replace(_method("damped", Still(), settings), interventions=interventions)


def _method(name: str, rule: Rule, settings: Settings) -> Method:
    plain = {key: value for key, value in settings.items() if isinstance(value, int | float | tuple)}
    plain |= getattr(settings.get("gauge"), "keywords", {})
    return Method(name, "baseline", rule, plain)
