"""Training with teleports to a gauge, many problems and step sizes as one batched program."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from experiments.lab.rules import Gauge, moved_state
from meta_teleport.params import Params, axpy, per_task, value_and_grad
from meta_teleport.rules.rule import Observation, Rule
from meta_teleport.symmetry.site import Site
from meta_teleport.tasks.family import Tasks
from meta_teleport.teleportation.acceptance import Limits, is_usable, only

EVERY = 10

Measure = Callable[[Params], Tensor]


@dataclass(frozen=True)
class Method:
    """An optimizer, where its teleports go, and what they do to its moments: transport moves them by the group action,
    reset starts them again (the bias correction too), keep leaves them as they are. A rule that proposes elements
    itself teleports when it says so.

    ``arguments`` are the rule's beside the step size; ``recorded`` are settings of the gauge, for the record.
    ``randomized`` makes it a control: the same with random elements as large as those of this method. ``falls``: step
    sizes fall linearly to zero; not for rules that see to that themselves.
    """

    rule: Callable[..., Rule]
    gauge: Gauge | None = None
    state: Literal["transport", "reset", "keep"] = "transport"
    arguments: dict[str, float] = field(default_factory=dict)
    recorded: dict[str, float] = field(default_factory=dict)
    randomized: bool = False
    falls: bool = True


class Trained(NamedTuple):
    """What training gives: the parameters, errors ``(measurements, tasks)`` at ``steps``, the sizes ``(tasks,)`` of all
    elements in the order they were used, and the part of the teleports that was left out."""

    params: Params
    errors: Tensor
    steps: list[int]
    sizes: list[Tensor]
    skipped: float


def size_of(g: Tensor) -> Tensor:
    """How far an element stretches: the norm of the logarithms of its singular values, ``(tasks,)``."""
    return torch.linalg.svdvals(g.double()).log().norm(dim=-1)


def random_like(sizes: list[Tensor], generator: torch.Generator) -> Gauge:
    """The control: random elements of GL as large as the teleports of another run were, one after the other."""
    remaining: Iterator[Tensor] = iter(sizes)

    def draw(site: Site, params: Params) -> Tensor:
        size = next(remaining)
        t = site.group.sample_algebra(len(size), generator=generator, dtype=torch.float64, device=size.device)
        return site.group.exp(per_task(size, t) * t)

    return draw


def element(gauge: Gauge, site: Site, params: Params) -> tuple[Tensor, Tensor]:
    """The gauge's element ``(tasks, k, k)`` and where it is used ``(tasks,)``.

    The identity stands in for one that is not finite, as when ``B A`` lacks full rank, or so ill-conditioned that
    rounding could move the loss by more than 1e-4.
    """
    g = gauge(site, params)
    used = is_usable(site.group, g, Limits().condition(params[site.parameters[0]].dtype))
    return only(site.group, g, used), used


def train(
    tasks: Tasks,
    method: Method,
    lr: Tensor,  # (tasks,)
    steps: int,
    measure: Measure,
    measured: int = 20,
) -> Trained:
    """Trains every task with its own step size, with a teleport every 10 steps.

    ``measure`` gives the reported errors, at the start and ``measured`` times up to the end.
    """
    rule, symmetry = method.rule(lr, **method.arguments), tasks.symmetry
    params, state = tasks.params, rule.init(tasks.params, symmetry)
    step = torch.zeros(tasks.count, dtype=torch.long, device=lr.device)
    age, sizes, used = step, [], []
    errors, at = [measure(params)], [0]
    for number in range(steps):
        observation = observe(tasks, params, step + number, age)
        with torch.no_grad():
            proposal, state = rule(observation, state)
        params, age = axpy(1 - number / steps * method.falls, proposal.update, params), age + 1
        if proposal.algebra:
            elements = symmetry.exp_pairs(proposal.algebra)
            params, state = symmetry.move(params, elements), rule.transport(state, symmetry, elements)
        if method.gauge and (number + 1) % EVERY == 0 and number + 1 < steps:
            for site in symmetry.sites:
                g, ok = element(method.gauge, site, params)
                g = g.to(lr.dtype)
                params = site.act(params, g)
                state = moved_state(site, state, g) if method.state == "transport" else state
                sizes.append(size_of(g))
                used.append(ok)
            if method.state == "reset":
                state, age = rule.init(params, symmetry), torch.zeros_like(age)
        if (number + 1) * measured // steps > number * measured // steps:
            errors.append(measure(params))
            at.append(number + 1)
    skipped = 1 - float(torch.stack(used).double().mean()) if used else 0.0
    return Trained(params, torch.stack(errors), at, sizes, skipped)


def observe(tasks: Tasks, params: Params, step: Tensor, age: Tensor) -> Observation:
    """Loss and gradient on the batch of ``step``; ``age`` is what the optimizer's bias correction counts."""
    loss, gradients = value_and_grad(partial(tasks.loss, step=step), params)
    grams = tasks.symmetry.grams(params, tasks.inputs(step))
    return Observation(params, gradients, loss, age, (), grams, tasks.symmetry)
