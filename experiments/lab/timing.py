"""Ratios of times on a machine whose speed changes while one looks, and exact counts of what was evaluated."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from meta_teleport.evaluation.statistics import bootstrap

Begin = Callable[[], Callable[[], object]]


@dataclass(frozen=True)
class Work:
    """What is timed: ``begin()``, off the clock, gives a call that does ``units`` of it."""

    begin: Begin
    units: int = 1


@dataclass(frozen=True)
class Clock:
    """How long to look: ``bursts`` of at least ``seconds`` and one call each."""

    bursts: int
    seconds: float
    device: str = "cpu"

    def burst(self, work: Work, run: Callable[[], object]) -> float:
        """Seconds per unit."""
        self._wait()
        began, calls = perf_counter(), 0
        while not calls or perf_counter() - began < self.seconds:
            run()
            calls += 1
        self._wait()
        return (perf_counter() - began) / (calls * work.units)

    def compare(self, work: Work, reference: Work) -> dict[str, Any]:
        """How many times longer a unit of ``work`` takes than one of ``reference``.

        Every burst of work lies between two of the reference, whose mean it is divided by; the first is left out. The
        geometric mean over bursts, with its 95 % bootstrap interval; and the median seconds of each.
        """
        pairs = [self._pair(work, reference) for _ in range(self.bursts + 1)][1:]
        logarithms = torch.tensor(pairs, dtype=torch.float64).log()
        ratios = logarithms[:, 0] - logarithms[:, 1]
        interval = bootstrap(ratios, torch.Generator().manual_seed(0))
        seconds, yardstick = (median(column) for column in zip(*pairs, strict=True))
        return {
            "ratio": exp(float(ratios.mean())),
            "ci95": [exp(bound) for bound in interval],
            "seconds": seconds,
            "reference_seconds": yardstick,
        }

    def _pair(self, work: Work, reference: Work) -> tuple[float, float]:
        run, yardstick = work.begin(), reference.begin()
        before = self.burst(reference, yardstick)
        seconds = self.burst(work, run)
        return seconds, (before + self.burst(reference, yardstick)) / 2

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


@contextmanager
def all_cores() -> Iterator[None]:
    """PyTorch uses every core of the machine inside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Counted:
    """A loss that counts how often it is run forward and backward, second derivatives left out."""

    def __init__(self, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        self.loss = loss
        self.forward = self.backward = 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.forward += 1
        value = self.loss(model, batch)
        if value.requires_grad:
            value.register_hook(self._differentiated)
        return value

    def _differentiated(self, gradient: Tensor) -> None:
        self.backward += 1
