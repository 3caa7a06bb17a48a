"""A rule of two learned numbers: gradient descent whose step length goes from one value to another."""

import torch
from torch import Tensor

from meta_teleport.params import Params, per_task
from meta_teleport.rules.classical import NoState
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.symmetry.symmetry import Symmetry


class Schedule(Rule):
    """``f_t = -eta_t grad_t`` with ``log eta_t = (1 - t / T) a + (t / T) b``; a and b are the meta-parameters.

    Args:
        horizon: The steps T at which the step length is ``exp(b)``.
        start: Both a and b before meta-training.
    """

    horizon: int

    def __init__(self, horizon: int = 100, start: float = -5.0) -> None:
        super().__init__()
        self.horizon = horizon
        self.ends = torch.nn.Parameter(torch.full((2,), start))

    def init(self, params: Params, symmetry: Symmetry) -> NoState:
        return NoState()

    def forward(self, observation: Observation, state: NoState) -> tuple[Proposal, NoState]:
        length = self.lengths(observation.step.to(observation.loss.dtype))
        return Proposal({name: -per_task(length, g) * g for name, g in observation.gradients.items()}), state

    def lengths(self, step: Tensor) -> Tensor:
        """``eta_t`` at every step."""
        return torch.lerp(self.ends[0], self.ends[1], step / self.horizon).exp()
