"""Regression with an MLP, ``L = 0.5 ||Y - W_L s(... s(W_1 X))||_F^2`` (Zhao et al. 2024, section 5.2).

With no arguments these are the paper's problems: X, Y, W_1, W_2 all 20 x 20 with entries from U(0, 1) and a leaky
ReLU of slope 0.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.models import DEEPEST
from meta_teleport.params import Params, functional
from meta_teleport.tasks.family import Split, TaskFamily, split_generator
from meta_teleport.tasks.network import NetworkTasks, network, prepared


@dataclass(frozen=True)
class RegressionTasks(NetworkTasks):
    """Regression problems; see :class:`NetworkTasks`."""

    def loss(self, params: Params, step: Tensor) -> Tensor:
        return _half_square(self.outputs(params, step) - self.rows("labels", step))

    def error(self, params: Params, step: Tensor) -> Tensor:
        return self.total_loss(params)

    def total_loss(self, params: Params) -> Tensor:
        """The loss over all points, whatever the batch, ``(tasks,)``."""
        return _half_square(functional(self.model)(params, self.data["inputs"]) - self.data["labels"])


class Regression(TaskFamily):
    """Random regression problems for one MLP shape.

    Args:
        width: Units in every hidden layer, and the default of inputs, outputs and points.
        depth: Number of weight matrices, 2 or more.
        inputs: Input dimension d; the width if not given.
        outputs: Output dimension m; the width if not given.
        points: Data points n per problem; the input dimension if not given.
        hidden: Widths of the hidden layers where they differ; overrides width and depth.
        batch: Points per step; all of them if not given.
        data: uniform draws inputs, random labels and weights from U(0, 1) (the paper); gaussian draws inputs and
            labels from N(0, 1) and weights from N(0, 1 / fan-in).
        labels: random, or teacher: the outputs of a second network drawn like the first.
        noise: Standard deviation of Gaussian noise added to the labels, in units of the labels.
        activation: A name of the activation table: leaky_relu, asinh, identity, relu, tanh, ...
        bias: Whether the layers have biases.
        action: The group action that teleports: general_linear (the paper's (a)), pseudo_inverse (its (b)), linear,
            scaling.
        group: gl, orthogonal, or first_order (the I + T, I - T pair of earlier code).
        displacement: Use the displacement form of the data-dependent actions.
        allow_drift: Accept batches wider than a data-dependent action can carry without changing the loss.
    """

    def __init__(
        self,
        width: int = 20,
        depth: int = 2,
        inputs: int | None = None,
        outputs: int | None = None,
        points: int | None = None,
        hidden: Sequence[int] | None = None,
        batch: int | None = None,
        data: Literal["uniform", "gaussian"] = "uniform",
        labels: Literal["random", "teacher"] = "random",
        noise: float = 0.0,
        activation: str = "leaky_relu",
        bias: bool = False,
        action: str = "general_linear",
        group: str = "gl",
        displacement: bool = True,
        allow_drift: bool = False,
    ) -> None:
        if not 2 <= depth < DEEPEST or width < 1:
            raise UserError(
                f"width {width} and depth {depth} do not make a network: width >= 1, depth from 2 to {DEEPEST - 1}"
            )
        hidden = list(hidden) if hidden is not None else [width] * (depth - 1)
        widths = [inputs or width, *hidden, outputs or width]
        self.points = points or widths[0]
        if batch is not None and not 1 <= batch <= self.points:
            raise UserError(f"batch {batch} does not fit {self.points} points: choose 1 to {self.points}")
        for name, value, choices in (
            ("data", data, ("uniform", "gaussian")),
            ("labels", labels, ("random", "teacher")),
        ):
            if value not in choices:
                raise UserError(f"unknown {name} '{value}': choose one of {', '.join(choices)}")
        if not noise >= 0:
            raise UserError(f"noise {noise} is not possible: give noise >= 0")
        self.batch, self.data, self.labels, self.noise = batch, data, labels, noise
        self.model, self.symmetry = network(
            widths, activation, bias, action, group, displacement, batch or self.points, allow_drift
        )

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> RegressionTasks:
        child = split_generator(generator, split)
        d, m = self.model.widths[0], self.model.widths[-1]
        inputs = self._draw(child, count, self.points, d)
        params = self._parameters(child, count)
        labels = self._draw(child, count, self.points, m)
        if self.labels == "teacher":
            labels = functional(self.model)(self._parameters(child, count), inputs)
        if self.noise:
            labels = labels + self.noise * torch.randn(labels.shape, generator=child, dtype=torch.float64)
        data = prepared({"inputs": inputs, "labels": labels}, self.symmetry, self.batch)
        return RegressionTasks(
            {name: tensor.to(device, dtype) for name, tensor in params.items()},
            {name: tensor.to(device, dtype) for name, tensor in data.items()},
            self.model,
            self.symmetry,
            self.batch,
        )

    def _draw(self, generator: torch.Generator, *shape: int) -> Tensor:
        draw = torch.rand if self.data == "uniform" else torch.randn
        return draw(*shape, generator=generator, dtype=torch.float64)

    def _parameters(self, generator: torch.Generator, count: int) -> Params:
        params = {}
        for name, p in self.model.named_parameters():
            drawn = self._draw(generator, count, *p.shape)
            params[name] = drawn if self.data == "uniform" else drawn / p.shape[-1] ** 0.5 if p.ndim > 1 else 0 * drawn
        return params


def _half_square(residual: Tensor) -> Tensor:
    """``0.5 ||residual||_F^2`` of each task."""
    return 0.5 * residual.square().sum((-2, -1))
