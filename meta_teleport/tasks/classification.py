"""Classification of images with an MLP, in mini-batches.

A task is a random part of the training images under a random relabelling of the classes, and fresh initial weights.
``loss`` is the cross entropy of a mini-batch and ``error`` that of validation images, which no task trains on;
``test_loss`` and ``test_accuracy`` say what parameters are worth on the test images. Training tasks draw from one half
of the training images, held-out tasks from the other half. Positive scalings keep the loss, on every image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from meta_teleport.errors import UserError
from meta_teleport.params import Params, functional
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.tasks.family import SPLITS, Split, TaskFamily, mini_batch, split_generator
from meta_teleport.tasks.images import Images, load_images
from meta_teleport.tasks.network import NetworkTasks, cross_entropy, linear_start, network

CHUNK = 1000


@dataclass(frozen=True, kw_only=True)
class ClassificationTasks(NetworkTasks):
    """Classification problems. All share ``images``; data ``index`` (tasks, points) says which training images are a
    task's own, in the order of its mini-batches, and ``classes`` (tasks, classes) what it calls each class."""

    images: Images

    def inputs(self, step: Tensor) -> LayerInput:
        return LayerInput(self.rows("inputs", step).mT)

    def rows(self, name: str, step: Tensor) -> Tensor:
        """What each task sees at its own ``step``: ``inputs`` (tasks, batch, d), or one-hot ``labels`` (tasks, batch,
        classes)."""
        index = mini_batch(self.data["index"], step, self.batch)
        return self.images.x_train[index] if name == "inputs" else self._labels(self.images.y_train[index])

    def loss(self, params: Params, step: Tensor) -> Tensor:
        return cross_entropy(self.outputs(params, step), self.rows("labels", step))

    def error(self, params: Params, step: Tensor) -> Tensor:
        """The mean cross entropy on the first 1000 validation images, ``(tasks,)``."""
        x, y = self.images.x_validation[:CHUNK], self.images.y_validation[:CHUNK]
        return cross_entropy(functional(self.model)(params, x), self._labels(y.expand(self.count, -1)))

    def test_loss(self, params: Params) -> Tensor:
        """The mean cross entropy on all test images, ``(tasks,)``; not differentiable."""
        return self._test(params)[0]

    def test_accuracy(self, params: Params) -> Tensor:
        """The part of all test images that is classified correctly, ``(tasks,)``."""
        return self._test(params)[1]

    @torch.no_grad()
    def _test(self, params: Params) -> tuple[Tensor, Tensor]:
        """Loss and accuracy, some images at a time as all tasks see all of them."""
        total = torch.zeros(2, self.count).to(self.images.x_test)
        parts = (values.split(CHUNK) for values in (self.images.x_test, self.images.y_test))
        for x, y in zip(*parts, strict=True):
            outputs, labels = functional(self.model)(params, x), self._labels(y.expand(self.count, -1))
            right = (outputs.argmax(-1) == labels.argmax(-1)).to(total.dtype).mean(-1)
            total += len(y) * torch.stack([cross_entropy(outputs, labels), right])
        loss, accuracy = total / len(self.images.y_test)
        return loss, accuracy

    def _labels(self, y: Tensor) -> Tensor:
        """One-hot labels of the classes ``(tasks, n)``, each task by its own names."""
        names = self.data["classes"]
        return F.one_hot(names.gather(1, y), names.shape[1]).to(self.images.x_train.dtype)


class Classification(TaskFamily):
    """Classification tasks of one data set and one MLP.

    Args:
        data: digits, mnist, fashion_mnist, cifar10, or the path of an .npz; see :func:`load_images`.
        hidden: Widths of the hidden layers. Weights and biases start as in torch.nn.Linear.
        activation: A positively homogeneous one of the activation table: leaky_relu, relu, identity.
        bias: Whether the layers have biases.
        points: Images per task, drawn without replacement from its half; all of the half if not given.
        batch: Images per step. None: all points.
        folder: Where the files of the data set are kept, and downloaded to.
        download: Whether missing files are downloaded.
    """

    def __init__(
        self,
        data: str = "digits",
        hidden: Sequence[int] = (32,),
        activation: str = "leaky_relu",
        bias: bool = True,
        points: int | None = None,
        batch: int | None = 64,
        folder: str = "data",
        download: bool = False,
    ) -> None:
        self.images = load_images(data, folder, download).flat
        self.half = len(self.images.x_train) // len(SPLITS)
        self.points = self.half if points is None else points
        if not 1 <= self.points <= self.half:
            raise UserError(f"{self.points} points do not fit the half of {self.half} images: choose 1 to {self.half}")
        if batch is not None and not 1 <= batch <= self.points:
            raise UserError(f"batch {batch} does not fit {self.points} points: choose 1 to {self.points}")
        self.batch = batch
        widths = [self.images.x_train.shape[1], *hidden, self.images.classes]
        self.model, self.symmetry = network(widths, activation, bias, "scaling", "gl", False, self.points, False)
        self._held: dict[tuple[torch.device, torch.dtype], Images] = {}

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> ClassificationTasks:
        child = split_generator(generator, split)

        def shuffled(size: int) -> Tensor:
            return torch.rand(count, size, generator=child, dtype=torch.float64).argsort(-1)

        params = linear_start(self.model, count, child)
        index = SPLITS.index(split) * self.half + shuffled(self.half)[:, : self.points]
        data = {"index": index.contiguous(), "classes": shuffled(self.images.classes)}
        return ClassificationTasks(
            {name: tensor.to(device, dtype) for name, tensor in params.items()},
            {name: tensor.to(device) for name, tensor in data.items()},
            self.model,
            self.symmetry,
            self.batch,
            images=self._images(torch.device(device), dtype),
        )

    def _images(self, device: torch.device, dtype: torch.dtype) -> Images:
        """The images on a device, once for all tasks that are ever drawn."""
        if (device, dtype) not in self._held:
            self._held[device, dtype] = self.images.to(device, dtype)
        return self._held[device, dtype]
