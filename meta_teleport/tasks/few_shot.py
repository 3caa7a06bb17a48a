"""N-way K-shot classification with an MLP, on tasks that learn2learn draws.

A task is a *support* set, ``shots`` labelled images of each of ``ways`` classes, and a *query* set of other images of
these classes. Rules and optimizers see the support set: ``loss`` is its cross entropy. ``query_loss`` and
``query_accuracy`` say what a task's parameters are worth. Training and held-out tasks have no class in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from meta_teleport.errors import UserError
from meta_teleport.params import Params, functional
from meta_teleport.tasks.family import SPLITS, Split, TaskFamily, split_generator
from meta_teleport.tasks.network import NetworkTasks, cross_entropy, linear_start, network, prepared
from meta_teleport.tasks.tasksets import draw, fixed, load_tasksets


@dataclass(frozen=True)
class FewShotTasks(NetworkTasks):
    """Few-shot problems: data ``inputs`` (tasks, ways * shots, d) and ``labels`` (tasks, ways * shots, ways), one-hot,
    and ``query_inputs``, ``query_labels`` of the query set. Support images are in rounds of one per class."""

    def loss(self, params: Params, step: Tensor) -> Tensor:
        return cross_entropy(self.outputs(params, step), self.rows("labels", step))

    def query_outputs(self, params: Params) -> Tensor:
        """The network's outputs on the query sets, ``(tasks, ways * queries, ways)``."""
        return functional(self.model)(params, self.data["query_inputs"])

    def query_loss(self, params: Params) -> Tensor:
        """The mean cross entropy on the query sets, ``(tasks,)``."""
        return cross_entropy(self.query_outputs(params), self.data["query_labels"])

    def query_accuracy(self, params: Params) -> Tensor:
        """The part of the query images that are classified correctly, ``(tasks,)``."""
        right = self.query_outputs(params).argmax(-1) == self.data["query_labels"].argmax(-1)
        return right.to(self.data["query_inputs"].dtype).mean(-1)


class FewShot(TaskFamily):
    """Few-shot tasks of a data set, or of learn2learn tasksets of one's own.

    Needs learn2learn. In Python ``data`` may be a pair of ``learn2learn.data.Taskset``, to train on and to hold out;
    that they share no class is then for their maker to see to.

    Args:
        data: digits, mnist, fashion_mnist, cifar10, the path of an .npz, omniglot or mini_imagenet.
        folder: Where the files of the data set are kept, and downloaded to.
        download: Whether missing files are downloaded.
        ways: Classes per task.
        shots: Support images per class.
        queries: Query images per class.
        held_out: Classes that held-out tasks are made of, and training tasks never; the last two fifths of the classes
            if not given. omniglot and mini_imagenet have their own.
        pixels: Side that larger images are averaged down to; 0 leaves all as they are.
        hidden: Widths of the hidden layers.
        start: Seed of one initialisation that all tasks begin from; every task has its own if not given. Weights
            and biases are drawn as torch.nn.Linear does, from U(-1, 1) / sqrt(fan-in).
        batch: Support images per step; all of them if not given.
        activation: A name of the activation table: leaky_relu, relu, asinh, tanh, ...
        bias: Whether the layers have biases.
        action: The group action that teleports: scaling (exact for every input), general_linear and pseudo_inverse
            (they keep the loss on the support set, not on the query set), linear.
        group: gl, orthogonal, or first_order; not for scaling.
        displacement: Use the displacement form of the data-dependent actions.
        allow_drift: Accept support sets wider than a data-dependent action can carry without changing the loss.
    """

    def __init__(
        self,
        data: str | tuple[Any, Any] = "digits",
        folder: str = "data",
        download: bool = True,
        ways: int = 3,
        shots: int = 5,
        queries: int = 15,
        held_out: Sequence[int] | None = None,
        pixels: int = 8,
        hidden: Sequence[int] = (20, 16),
        start: int | None = None,
        batch: int | None = None,
        activation: str = "leaky_relu",
        bias: bool = True,
        action: str = "scaling",
        group: str = "gl",
        displacement: bool = True,
        allow_drift: bool = False,
    ) -> None:
        if ways < 2 or shots < 1 or queries < 1:
            raise UserError(f"ways {ways}, shots {shots}, queries {queries} make no task: ways >= 2, the others >= 1")
        if pixels < 0:
            raise UserError(f"pixels is {pixels}: give the side of an image, or 0 to leave images as they are")
        if batch is not None and not 1 <= batch <= ways * shots:
            raise UserError(f"batch {batch} does not fit {ways * shots} support images: choose 1 to {ways * shots}")
        self.ways, self.shots, self.samples, self.pixels = ways, shots, shots + queries, pixels
        self.start, self.batch = start, batch
        if isinstance(data, str):
            data = load_tasksets(data, folder, download, ways, self.samples, held_out)
        self.tasksets = dict(zip(SPLITS, map(fixed, data), strict=True))
        self.inputs = self._rows("train", 1, 0).shape[-1]
        self.model, self.symmetry = network(
            [self.inputs, *hidden, ways],
            activation,
            bias,
            action,
            group,
            displacement,
            batch or ways * shots,
            allow_drift,
        )

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> FewShotTasks:
        child = split_generator(generator, split)
        support, query = self._rows(split, count, child.initial_seed()).split(
            [self.shots, self.samples - self.shots], dim=2
        )
        params = self._parameters(child, count)
        data = {"inputs": _rounds(support), "query_inputs": _rounds(query)}
        data |= {"labels": self._labels(support), "query_labels": self._labels(query)}
        data = prepared(data, self.symmetry, self.batch)
        return FewShotTasks(
            {name: tensor.to(device, dtype) for name, tensor in params.items()},
            {name: tensor.to(device, dtype) for name, tensor in data.items()},
            self.model,
            self.symmetry,
            self.batch,
        )

    def _rows(self, split: Split, count: int, seed: int) -> Tensor:
        """The images of ``count`` tasks as rows, ``(count, ways, samples, d)``, in float64."""
        x = draw(self.tasksets[split], count, seed, self.ways, self.samples).double()
        if self.pixels and x.ndim > 4 and min(x.shape[-2:]) > self.pixels:
            x = F.adaptive_avg_pool2d(x.flatten(0, 2), self.pixels).unflatten(0, x.shape[:3])
        return x.flatten(3)

    def _labels(self, images: Tensor) -> Tensor:
        """One-hot labels of images ``(count, ways, each, d)``, in the order of :func:`_rounds`."""
        return torch.eye(self.ways, dtype=images.dtype).repeat(images.shape[2], 1).expand(len(images), -1, -1)

    def _parameters(self, generator: torch.Generator, count: int) -> Params:
        if self.start is None:
            return linear_start(self.model, count, generator)
        common = linear_start(self.model, 1, torch.Generator().manual_seed(self.start))
        return {name: p.repeat(count, *(1,) * (p.ndim - 1)) for name, p in common.items()}


def _rounds(images: Tensor) -> Tensor:
    """Images ``(count, ways, each, d)`` as ``(count, each * ways, d)``: the first of every class, then the second."""
    return images.transpose(1, 2).flatten(1, 2)
