"""The Levenberg-Marquardt method for the regression problems of held_out.py, many tasks side by side.

For residuals r(w) = f(w, X) - Y of one task, J their Jacobian,

    d = -J^T (J J^T + damping I)^-1 r,

which is ``-(J^T J + damping I)^-1 J^T r``. The step is taken if the loss 0.5 |r|^2 falls; by the gain ratio q of the
fall and the predicted one, the damping is multiplied by max(1/3, 1 - (2 q - 1)^3) if q > 0, else by 2, 4, 8, ... It
begins at ``start`` times the largest entry of the diagonal of J J^T (Madsen, Nielsen and Tingleff 2004, section 3.2).
"""

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from meta_teleport.params import Params, axpy, flatten, functional, unflatten
from meta_teleport.params import where as choose
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.regression import RegressionTasks

CHUNK = 8
LEAST = 1e-30


class LevenbergMarquardt:
    """A move of the parameters ``(tasks, params, step) -> params``: one damped Gauss-Newton step on all points."""

    def __init__(self, start: float = 1e-3) -> None:
        self.start = start
        self.damping = self.growth = torch.zeros(0)

    def __call__(self, tasks: Tasks, params: Params, step: Tensor) -> Params:
        assert isinstance(tasks, RegressionTasks)
        parts = torch.arange(tasks.count).split(CHUNK)
        fresh = int(step[0]) == 0
        if fresh:
            self.damping = step.new_zeros(tasks.count, dtype=torch.float64)
            self.growth = torch.full_like(self.damping, 2.0)
        moved = [self._move(tasks.select(i), {n: p[i] for n, p in params.items()}, i, fresh) for i in parts]
        return {name: torch.cat([part[name] for part in moved]) for name in params}

    def _move(self, tasks: RegressionTasks, params: Params, index: Tensor, fresh: bool) -> Params:
        jacobian, residual = linearised(tasks, params)
        gram = jacobian @ jacobian.mT
        if fresh:
            self.damping[index] = self.start * gram.diagonal(dim1=-2, dim2=-1).amax(-1)
        damping, growth = self.damping[index].clamp(min=LEAST), self.growth[index]
        damped = gram + torch.diag_embed(damping[:, None].expand_as(residual))
        d = -(jacobian.mT @ torch.linalg.solve_ex(damped, residual.unsqueeze(-1))[0]).squeeze(-1)
        slope = (jacobian.mT @ residual.unsqueeze(-1)).squeeze(-1)
        predicted = (d * (damping[:, None] * d - slope)).sum(1) / 2
        moved = axpy(1.0, unflatten(d.to(flatten(params)), params), params)
        gain = (tasks.total_loss(params) - tasks.total_loss(moved)).double() / predicted.clamp(min=LEAST)
        better = gain > 0
        shrunk = (1 - (2 * gain - 1) ** 3).clamp(min=1 / 3)
        self.damping[index] = damping * torch.where(better, shrunk, growth)
        self.growth[index] = torch.where(better, 2.0, 2 * growth)
        return choose(better, moved, params)


def linearised(tasks: RegressionTasks, params: Params) -> tuple[Tensor, Tensor]:
    """The Jacobian ``(tasks, n m, parameters)`` and the residuals ``(tasks, n m)``, in float64."""
    wide = {name: p.double() for name, p in params.items()}
    inputs, labels = tasks.data["inputs"].double(), tasks.data["labels"].double()
    network = functional(tasks.model)

    def outputs(single: Params, x: Tensor) -> Tensor:
        lifted = {name: p.unsqueeze(0) for name, p in single.items()}
        return network(lifted, x.unsqueeze(0))[0].flatten()

    jacobians = vmap(jacrev(outputs))(wide, inputs)
    jacobian = torch.cat([jacobians[name].flatten(2) for name in params], 2)
    return jacobian, (network(wide, inputs) - labels).flatten(1)
