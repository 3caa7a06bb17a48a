"""How to meta-train: every choice of the outer loop, with its default."""

from dataclasses import dataclass
from typing import Literal

from meta_teleport.errors import UserError
from meta_teleport.meta.estimators import OBJECTIVES


@dataclass(frozen=True)
class Training:
    """How to meta-train.

    Args:
        meta_steps: Updates of phi; each costs one window of all tasks.
        tasks: Problems trained side by side.
        window: Steps unrolled between two updates of phi (t_unroll).
        horizon: Steps a problem is trained for before it is replaced, a multiple of the window.
        lr_update: Adam learning rate of the meta-parameters that produce updates.
        lr_element: Adam learning rate of the meta-parameters that produce group elements.
        objective: log (mean of log(L / L_0) over the window) or sum (of the losses, as published).
        clip: Bound on the norm of the meta-gradient; 0 for none (published).
        decay: Learning rates over the run: cosine (to zero) or constant (published).
        second_order: Let meta-gradients flow through the observed gradients (second derivatives of the loss).
        losses_before: Take losses before each step, not after, as the published code does.
        staggered: Start the problems out of phase, so that a batch mixes early and late training.
        growing_horizon: Start with a horizon of one window and double it, up to ``horizon``, whenever nine out of
            ten problems still fall in the last window before the present horizon: the step count is learned.
        curriculum: Let the members of a mixture join one after the other over the first half of the meta-steps.
        save_every: Meta-steps between two saved states of the run.
        log_every: Meta-steps between two rows of metrics.
    """

    meta_steps: int = 400
    tasks: int = 64
    window: int = 10
    horizon: int = 50
    lr_update: float = 1e-3
    lr_element: float = 1e-3
    objective: Literal["log", "sum"] = "log"
    clip: float = 1.0
    decay: Literal["cosine", "constant"] = "cosine"
    second_order: bool = False
    losses_before: bool = False
    staggered: bool = True
    growing_horizon: bool = False
    curriculum: bool = False
    save_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("meta_steps", "tasks", "window", "horizon", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} is {getattr(self, name)}: give 1 or more")
        if self.horizon % self.window:
            raise UserError(f"horizon {self.horizon} is no multiple of window {self.window}: change one of them")
        if self.objective not in OBJECTIVES:
            raise UserError(f"unknown objective '{self.objective}': choose one of {', '.join(OBJECTIVES)}")
