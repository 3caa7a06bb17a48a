"""Tasks whose model is an MLP: what their families have in common."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.models import MLP
from meta_teleport.params import Params, functional
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Tasks, mini_batch


@dataclass(frozen=True)
class NetworkTasks(Tasks):
    """Problems of one MLP: data ``inputs`` (tasks, points, d), ``labels`` (tasks, points, m) and, for full batches,
    what the symmetry prepares of the inputs; see :func:`prepared`."""

    model: MLP
    network_symmetry: Symmetry
    batch: int | None = None

    @property
    def symmetry(self) -> Symmetry:
        return self.network_symmetry

    def inputs(self, step: Tensor) -> LayerInput:
        if self.batch is None:
            return LayerInput(self.data["inputs"].mT, self.data.get("pseudo_inverse"))
        return self.symmetry.prepare(self.rows("inputs", step))

    def outputs(self, params: Params, step: Tensor) -> Tensor:
        return functional(self.model)(params, self.rows("inputs", step))

    def rows(self, name: str, step: Tensor) -> Tensor:
        """The part of the data ``name`` that each task sees at its own ``step``."""
        return mini_batch(self.data[name], step, self.batch)


def network(
    widths: Sequence[int],
    activation: str,
    bias: bool,
    action: str,
    group: str,
    displacement: bool,
    points: int,
    allow_drift: bool,
) -> tuple[MLP, Symmetry]:
    """An MLP without parameters of its own (every task brings some), and the symmetry that ``action`` names.

    Raises ``UserError`` for permutations, which have no algebra, and, unless ``allow_drift``, for batches of ``points``
    that are wider than a data-dependent action can carry.
    """
    with torch.device("meta"):
        model = MLP(widths, activation, bias)
    symmetry = mlp_symmetry(model, action, group, displacement)
    if len(symmetry.continuous.sites) < len(symmetry.sites):
        raise UserError(f"action '{action}' has no Lie algebra to learn in: choose another one for a task family")
    if allow_drift:
        return model, replace(symmetry, keeps_loss=False)
    params = {name: p.unsqueeze(0) for name, p in model.named_parameters()}
    symmetry.require_exact(params, points, "allow_drift=True (--task.allow_drift true)")
    return model, symmetry


def linear_start(model: MLP, count: int, generator: torch.Generator) -> Params:
    """Weights and biases ``(count, *shape)`` from U(-1, 1) / sqrt(fan-in), as torch.nn.Linear draws them; float64."""
    params: Params = {}
    fan_in = 1
    for name, p in model.named_parameters():
        fan_in = p.shape[-1] if p.ndim > 1 else fan_in
        drawn = torch.rand(count, *p.shape, generator=generator, dtype=torch.float64)
        params[name] = (2 * drawn - 1) / fan_in**0.5
    return params


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """The mean over the images of outputs and one-hot labels ``(tasks, n, classes)``, shape ``(tasks,)``."""
    return -(labels * outputs.log_softmax(-1)).sum(-1).mean(-1)


def prepared(data: dict[str, Tensor], symmetry: Symmetry, batch: int | None) -> dict[str, Tensor]:
    """The data with the pseudo-inverse of the inputs, where a data-dependent action needs it at every step."""
    inverse = symmetry.prepare(data["inputs"]).pseudo_inverse if batch is None else None
    return data if inverse is None else {**data, "pseudo_inverse": inverse}
