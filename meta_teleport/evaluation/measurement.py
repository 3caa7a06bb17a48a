"""One method on one batch of tasks: losses, seconds, drift, failures.

Everything runs under ``torch.no_grad``. The clock covers what the method computes, its teleports and the losses after
each step, and stands still while drift is measured.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter, thread_time

import torch
from torch import Tensor

from meta_teleport.evaluation.methods import Method
from meta_teleport.meta.unroll import Carry, failure_limit, start, unroll
from meta_teleport.params import Params, where
from meta_teleport.rules.rule import Proposal
from meta_teleport.tasks.family import Tasks
from meta_teleport.teleportation.acceptance import is_safe, loss_drift, output_drift

CHUNK = 10
WARM_UP_STEPS = 2
LARGEST = 1e200
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measurement:
    """What one method did.

    ``losses`` ``(steps + 1, tasks)``, float64, begins with the initial loss. From the step at which a task failed
    on (see :mod:`meta_teleport.meta.unroll`) its losses are 1e6 times its initial loss, and an initial loss that is
    not finite counts 1e200: all losses are finite. ``seconds`` ``(steps + 1,)``
    is the time since the start, for the whole batch. The drifts are the largest over tasks and steps of
    ``|L(g.w) - L(w)| / max(|L(w)|, 1)`` and ``||f(g.w) - f(w)|| / ||f(w)||``, 0 without teleports.
    """

    losses: Tensor
    seconds: Tensor
    alive: Tensor
    teleports: int
    rejected: int
    drift_max: float
    output_drift_max: float

    @property
    def failed(self) -> int:
        """The number of tasks that failed."""
        return int((~self.alive).sum())


class Stopwatch:
    """Seconds of work on one device, with pauses. On a CPU they are those that the calling thread is busy: other
    programs do not count."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self._since = device, 0.0, 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return perf_counter()
        return thread_time()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time inside; may not be nested."""
        self._since = self._now()
        yield
        self.seconds += self._now() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside :meth:`running`: leaves the time inside out."""
        self.seconds += self._now() - self._since
        yield
        self._since = self._now()

    def lap(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Drift:
    """The largest change of loss and outputs by a teleport, over the tasks that have not failed."""

    def __init__(self, tasks: Tasks, clock: Stopwatch) -> None:
        step = torch.zeros(tasks.count, dtype=torch.long, device=clock.device)
        self.limit = failure_limit(tasks.loss(tasks.params, step))
        self.alive = torch.isfinite(self.limit)
        self.clock, self.count, self.loss, self.output = clock, 0, 0.0, 0.0

    def __call__(self, tasks: Tasks, before: Params, after: Params, proposal: Proposal, step: Tensor) -> None:
        """The probe that :func:`unroll` calls; the clock pauses meanwhile."""
        with self.clock.paused():
            self.measure(tasks, before, after, step)

    def measure(self, tasks: Tasks, before: Params, after: Params, step: Tensor) -> None:
        """Takes one teleport of every task into account."""
        old, new = tasks.loss(before, step), tasks.loss(after, step)
        self.alive = self.alive & torch.isfinite(new) & (new <= self.limit)
        self.count += 1
        self.loss = max(self.loss, self._largest(loss_drift(old, new)))
        outputs = tasks.outputs(before, step), tasks.outputs(after, step)
        self.output = max(self.output, self._largest(output_drift(*outputs)))

    def _largest(self, change: Tensor) -> float:
        return float(torch.where(self.alive, change, 0.0).max())


@torch.no_grad()
def measure(
    method: Method, tasks: Tasks, steps: int, report: Report | None = None, warm_up: bool = True
) -> Measurement:
    """``steps`` steps of a method; ``report(name, done, steps)`` is called now and then.

    ``warm_up``: run two steps first that are not counted, so that the seconds are those of a running program.
    """
    if warm_up:
        _Run(method, tasks).advance(0, min(WARM_UP_STEPS, steps))
    run = _Run(method, tasks)
    stops = {0, steps, *range(0, steps, CHUNK)}
    if method.interventions is not None:
        stops |= {s for jump in method.interventions.at for s in (jump, jump + 1) if s <= steps}
    for first, last in pairwise(sorted(stops)):
        run.advance(first, last)
        if report is not None:
            report(method.name, last, steps)
    return run.result()


class _Run:
    """A measurement under way."""

    def __init__(self, method: Method, tasks: Tasks) -> None:
        self.method, self.tasks = method, tasks
        self.phi = {
            name: p.to(next(iter(tasks.params.values())))
            for name, p in (*method.rule.named_parameters(), *method.rule.named_buffers())
        }
        self.carry: Carry = start(method.rule, tasks)
        self.clock = Stopwatch(self.carry.initial.device)
        self.drift = Drift(tasks, self.clock)
        self.losses, self.laps = [self.carry.initial.unsqueeze(0)], [0.0]

    def advance(self, first: int, last: int) -> None:
        """The steps from ``first`` to ``last``, with the jump before ``first`` if there is one."""
        if self.method.interventions is not None and first in self.method.interventions.at:
            self._intervene()
        with self.clock.running():
            losses, self.carry = unroll(
                self.method.rule, self.phi, self.tasks, self.carry, last - first, probe=self.drift
            )
        self.drift.alive = self.drift.alive & self.carry.alive
        self.losses.append(losses)
        self.laps += [self.clock.lap() / (last - first)] * (last - first)

    def _intervene(self) -> None:
        interventions, carry = self.method.interventions, self.carry
        assert interventions is not None
        with self.clock.running():
            moved = where(carry.alive, interventions.move(self.tasks, carry.params, carry.step), carry.params)
            if interventions.teleports and self.tasks.symmetry.keeps_loss:
                before, after = (self.tasks.loss(params, carry.step) for params in (carry.params, moved))
                safe = is_safe(before, after)
                moved, carry = where(safe, moved, carry.params), carry._replace(rejected=carry.rejected + ~safe)
        if interventions.teleports:
            self.drift.measure(self.tasks, carry.params, moved, carry.step)
        self.carry = carry._replace(params=moved)

    def result(self) -> Measurement:
        """The measurement so far, with the losses of failed tasks marked."""
        losses = torch.cat(self.losses).double().nan_to_num(LARGEST, LARGEST).clamp(max=LARGEST)
        steps = torch.arange(len(losses), device=losses.device).unsqueeze(1)
        if self.method.rule.monotone:
            losses = losses.cummin(0).values
        failed_at = self.carry.failed_at.clamp(min=1)  # the initial loss is shown as it is
        losses = torch.where(steps < failed_at, losses, failure_limit(losses[0]))
        seconds = torch.tensor(self.laps, dtype=torch.float64).cumsum(0)
        return Measurement(
            losses.cpu(),
            seconds,
            self.carry.alive.cpu(),
            self.drift.count,
            int(self.carry.rejected.sum()),
            self.drift.loss,
            self.drift.output,
        )
