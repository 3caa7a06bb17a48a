"""How to meta-train: every choice of the outer loop, with its default."""

from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

from meta_teleport.errors import UserError
from meta_teleport.meta.estimators import OBJECTIVES

LONGEST = 10**8
ESTIMATORS = ("bptt", "es", "pes")


@dataclass(frozen=True)
class TrainingConfig:
    """How to meta-train.

    Args:
        meta_steps: Updates of phi; each costs one window of all tasks.
        tasks: Problems trained side by side, of each member of a mixture.
        window: Steps unrolled between two updates of phi (t_unroll).
        horizon: Steps a problem is trained for before it is replaced, a multiple of the window.
        lr_update: Adam learning rate of the meta-parameters that produce updates.
        lr_element: Adam learning rate of the meta-parameters that produce group elements.
        estimator: bptt (truncated back-propagation), es or pes (evolution strategies, truncated and persistent, which
            need no derivatives and twice as many forward passes, without the bias of cutting a life for pes).
        sigma: Standard deviation of the perturbations of es and pes, in units of the meta-parameters.
        pairs: Antithetic pairs of perturbations that es and pes divide the problems among, at most one for each.
        objective: log (mean of log(L / L_0) over the window), end (the same over its last tenth) or sum (of the losses,
            as published).
        floor: Losses below this fraction of a problem's initial loss count as that fraction in log losses; 0 for none.
            In float64, where log(L / L_0) can fall to -700, it keeps solved problems from outweighing all others.
        increase_penalty: Weight, beside the objective, of the mean over the window of max(0, log L_t - log L_(t-1)),
            with the step from the loss before the window; 0 for none.
        clip: Bound on the norm of the meta-gradient; 0 for none (published).
        decay: Learning rates over the run: cosine (to zero) or constant (published).
        decay_steps: Meta-steps over which a cosine falls, and after which rates stay at their last values; meta_steps
            if not given.
        second_order: Let the meta-gradients of bptt flow through the observed gradients (second derivatives of the
            loss).
        errors: Train on what the tasks are for (:meth:`tasks.family.Tasks.error`, relative to that of their start) in
            place of the loss that the rule sees: where batches are small or labels noisy, it is a poor view of that.
        losses_before: Take losses before each step, not after, as the published code does, whose windows are cut
            elsewhere, see :func:`meta_teleport.meta.unroll.unroll`.
        staggered: Start the problems out of phase, so that a batch mixes early and late training.
        save_every: Meta-steps between two saved states of the run.
        log_every: Meta-steps between two rows of metrics.
    """

    meta_steps: int = 400
    tasks: int = 64
    window: int = 10
    horizon: int = 50
    lr_update: float = 1e-3
    lr_element: float = 1e-3
    estimator: Literal["bptt", "es", "pes"] = "bptt"
    sigma: float = 0.01
    pairs: int = 8
    objective: Literal["log", "end", "sum"] = "log"
    floor: float = 0.0
    increase_penalty: float = 0.0
    clip: float = 1.0
    decay: Literal["cosine", "constant"] = "cosine"
    decay_steps: int | None = None
    second_order: bool = False
    errors: bool = False
    losses_before: bool = False
    staggered: bool = True
    save_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("meta_steps", "tasks", "window", "horizon", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} is {getattr(self, name)}: give 1 or more")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise UserError(f"training.decay_steps is {self.decay_steps}: give 1 or more")
        for name in ("meta_steps", "tasks", "window", "horizon"):
            if getattr(self, name) > LONGEST:
                raise UserError(f"training.{name} is {getattr(self, name)}: give {LONGEST:,} at most")
        for name in ("sigma", "floor", "increase_penalty", "clip"):
            if not isfinite(getattr(self, name)):
                raise UserError(f"training.{name} is {getattr(self, name)}: give a finite number")
        for name in ("lr_update", "lr_element"):
            if not 0 <= getattr(self, name) < inf:
                raise UserError(f"training.{name} is {getattr(self, name)}: give 0 or more")
        if self.horizon % self.window:
            raise UserError(f"horizon {self.horizon} is no multiple of window {self.window}: change one of them")
        if self.estimator not in ESTIMATORS:
            raise UserError(f"unknown estimator '{self.estimator}': choose one of {', '.join(ESTIMATORS)}")
        if self.estimator != "bptt" and not (self.sigma > 0 and 1 <= self.pairs <= self.tasks):
            raise UserError(
                f"training.sigma {self.sigma} and training.pairs {self.pairs} do not perturb {self.tasks} tasks: give "
                "sigma > 0, and pairs from 1 to the number of tasks"
            )
        if not 0 <= self.floor < 1:
            raise UserError(f"training.floor is {self.floor}: give a fraction of the initial loss, 0 or more, below 1")
        if not self.increase_penalty >= 0:
            raise UserError(f"training.increase_penalty is {self.increase_penalty}: give 0 or more")
        if self.objective not in OBJECTIVES:
            raise UserError(f"unknown objective '{self.objective}': choose one of {', '.join(OBJECTIVES)}")
