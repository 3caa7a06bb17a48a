"""One meta-training between two windows: whose turn it is, what it costs phi, and all that resuming needs."""

from collections.abc import Callable
from functools import partial
from math import cos, pi
from typing import Any, TypeVar

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.estimators import (
    OBJECTIVES,
    Estimate,
    Objective,
    Penalty,
    mean_increase,
    truncated_bptt,
)
from meta_teleport.meta.evolution import es, pes, start_pairs
from meta_teleport.meta.saved_states import IDENTITY, identity, require_own
from meta_teleport.meta.task_pool import TaskPool
from meta_teleport.meta.unroll import FAILURE_FACTOR, start
from meta_teleport.params import Params
from meta_teleport.rules.experience import Experience
from meta_teleport.rules.rule import Rule
from meta_teleport.tasks.family import TaskFamily, Tasks

T = TypeVar("T")
Start = Callable[[Rule, Tasks], Any]
LOST = 3
"""After how many windows without a survivor a run ends."""


class Trainer:
    """The state of a run between two windows."""

    def __init__(
        self,
        rule: Rule,
        family: TaskFamily,
        training: TrainingConfig,
        seed: int,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.rule, self.family, self.training = rule.to(device, dtype), family, training
        self.device, self.dtype = device, dtype
        self.identity = identity(rule, family, seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.phi: Params = dict(rule.named_parameters())
        groups = {"update": training.lr_update, "element": training.lr_element}
        names = rule.meta_groups()
        self.adam = torch.optim.Adam(
            [{"params": [self.phi[name] for name in names[key]], "lr": lr} for key, lr in groups.items() if names[key]]
        )
        self.peaks = [group["lr"] for group in self.adam.param_groups]
        self.start, self.estimate = _estimator(training, self.generator)
        self.objective, self.penalty = _objective(training), _penalty(training)
        self.pools = [self._pool(member) for member in family.members]
        met = (Experience.of_tasks(pool.tasks.params, pool.tasks.symmetry) for pool in self.pools)
        rule.experience = Experience.joined(met)
        self.meta_step, self.failed = 0, 0
        self.decay_steps = training.decay_steps or training.meta_steps

    @property
    def pool(self) -> TaskPool:
        """Whose turn the next meta-step is: the members of the family, one after the other."""
        return self.pools[self.meta_step % len(self.pools)]

    def step(self) -> Estimate:
        """One meta-step: fresh tasks where due, one window, one update of phi."""
        t, pool = self.training, self.pool
        pool.renew()
        self.failed += pool.unusable()
        estimate = self.estimate(
            self.rule,
            self.phi,
            pool.tasks,
            pool.carry,
            t.window,
            self.objective,
            penalty=self.penalty,
            losses_before=t.losses_before,
            errors=t.errors,
        )
        pool.follow(estimate)
        self.failed += estimate.failed
        if not estimate.lost:
            self._descend(estimate.gradient)
        self.meta_step += 1
        return estimate

    def require_survivors(self) -> None:
        """Raises ``UserError`` if no task of a member has survived its last LOST windows."""
        for member, pool in zip(self.family.members, self.pools, strict=True):
            if pool.lost >= LOST:
                raise UserError(
                    f"all {pool.tasks.count} tasks of {type(member).__name__} failed in {LOST} windows in a row (a "
                    f"loss not finite, or above {FAILURE_FACTOR:.0e} times the first): check that its losses are "
                    "finite at the start, and that the rule's first steps are short enough"
                )

    def _pool(self, member: TaskFamily) -> TaskPool:
        def sample(count: int) -> Tasks:
            return member.sample(count, self.generator, "train", self.dtype, self.device)

        return TaskPool(sample, partial(self.start, self.rule), self.training)

    def _descend(self, gradient: Params) -> None:
        for name, p in self.phi.items():
            p.grad = gradient[name]
        if self.training.clip:
            torch.nn.utils.clip_grad_norm_(self.phi.values(), self.training.clip)
        if self.training.decay == "cosine":
            last = self.decay_steps - 1
            factor = 0.5 * (1 + cos(pi * min(self.meta_step, last) / self.decay_steps))
            for group, peak in zip(self.adam.param_groups, self.peaks, strict=True):
                group["lr"] = peak * factor
        self.adam.step()
        self.adam.zero_grad()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything the next meta-step depends on, as tensors and numbers."""
        tensors = {f"phi.{name}": p.detach() for name, p in self.phi.items()}
        for name, p in self.phi.items():
            tensors |= {f"adam.{name}.{key}": value for key, value in self.adam.state[p].items()}
        numbers: dict[str, Any] = {IDENTITY: self.identity, "meta_step": self.meta_step, "failed": self.failed}
        numbers["decay_steps"] = self.decay_steps
        for prefix, pool in zip(self._prefixes(), self.pools, strict=True):
            held, counted = pool.state()
            tensors |= {prefix + name: tensor for name, tensor in held.items()}
            numbers |= {prefix + name: number for name, number in counted.items()}
        return {**tensors, "generator": self.generator.get_state()}, numbers

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """The inverse of :meth:`state`. Raises ``UserError`` for the state of another rule, family, seed or version."""
        require_own(tensors, numbers, *self.state())
        for name, p in self.phi.items():
            p.data.copy_(tensors[f"phi.{name}"])
            prefix = f"adam.{name}."
            state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if state:
                self.adam.state[p] = {**state, "step": state["step"].cpu()}
        for prefix, pool in zip(self._prefixes(), self.pools, strict=True):
            pool.restore(_below(prefix, tensors), _below(prefix, numbers))
        try:
            self.generator.set_state(tensors["generator"].cpu())
        except RuntimeError:
            raise UserError("the saved state holds no state of a generator: start the run anew") from None
        self.meta_step, self.failed = numbers["meta_step"], numbers["failed"]
        if self.training.decay_steps is None:
            self.decay_steps = numbers.get("decay_steps", self.decay_steps)

    def member_losses(self) -> dict[str, float]:
        """The latest meta-loss of every member of a mixture, by name of the metric; nothing for a single family."""
        if len(self.pools) == 1:
            return {}
        return {f"meta_loss/{i}": pool.meta_loss for i, pool in enumerate(self.pools)}

    def _prefixes(self) -> list[str]:
        """What the names of each pool's state begin with."""
        return ["", *(f"member{i}." for i in range(1, len(self.pools)))]


def _estimator(training: TrainingConfig, generator: torch.Generator) -> tuple[Start, Callable[..., Estimate]]:
    """How a task's carry begins, and the estimator that takes it from window to window."""
    if training.estimator == "bptt":
        return start, partial(truncated_bptt, second_order=training.second_order)
    options: dict[str, Any] = {"sigma": training.sigma, "pairs": training.pairs, "generator": generator}
    return (start_pairs, partial(pes, **options)) if training.estimator == "pes" else (start, partial(es, **options))


def _objective(training: TrainingConfig) -> Objective:
    objective = OBJECTIVES[training.objective]
    return objective if training.objective == "sum" else partial(objective, floor=training.floor)


def _penalty(training: TrainingConfig) -> Penalty | None:
    if not training.increase_penalty:
        return None

    def penalty(losses: Tensor, initial: Tensor, before: Tensor) -> Tensor:
        return training.increase_penalty * mean_increase(losses, initial, before, training.floor)

    return penalty


def _below(prefix: str, content: dict[str, T]) -> dict[str, T]:
    return {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
