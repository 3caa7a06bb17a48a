"""Small pre-trained transformers that adapt to a language near the one they know.

Every task takes one of a pool of pre-trained models, a fresh language shifted from that model's own, and fresh texts.
``Adapters`` trains low-rank factors ``B A`` beside every linear map of the blocks (Hu et al. 2022), ``AttentionPairs``
the attention matrices themselves. Both move along GL exactly: between the two factors of an adapter, and head by head
between queries and keys, and between values and outputs. Activations of such a model are no chain of layers, so the
symmetry has none.
"""

from abc import abstractmethod
from dataclasses import replace

import torch

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.tasks.family import Split, TaskFamily, split_generator
from meta_teleport.tasks.language import LanguageTasks
from meta_teleport.tasks.pretraining import Pretrained, pretrained, shifted
from meta_teleport.tasks.transformer import Sizes, initial, is_adapter, is_attention, structure


class Adaptation(TaskFamily):
    """What the two families share: a pool of pre-trained models per split, made on first use."""

    def __init__(self, sizes: Sizes, pool: int, seed: int) -> None:
        if pool < 1:
            raise UserError(f"a pool of {pool} models has none to adapt: give 1 or more")
        self.sizes, self.pool, self.seed = sizes, pool, seed
        self._models: dict[Split, Pretrained] = {}

    @staticmethod
    @abstractmethod
    def trained(name: str) -> bool:
        """Whether the tasks train this parameter."""

    @abstractmethod
    def start(self, count: int, generator: torch.Generator) -> Params:
        """Parameters ``(count, *shape)`` that do not start as the pre-trained model has them."""

    def models(self, split: Split) -> Pretrained:
        """The pre-trained models of a split, from the seed of the family alone."""
        if split not in self._models:
            generator = split_generator(torch.Generator().manual_seed(self.seed), split)
            self._models[split] = pretrained(self.sizes, self.pool, generator)
        return self._models[split]

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> LanguageTasks:
        child = split_generator(generator, split)
        models = self.models(split).select(torch.randint(self.pool, (count,), generator=child))
        models = models._replace(params={**models.params, **self.start(count, child)})
        tasks = shifted(self.sizes, models, self.trained, child)
        return replace(
            tasks,
            params={name: tensor.to(device, dtype) for name, tensor in tasks.params.items()},
            data={name: t.to(device, dtype if t.is_floating_point() else t.dtype) for name, t in tasks.data.items()},
        )


class Adapters(Adaptation):
    """Low-rank adapters of a small pre-trained transformer.

    Args:
        width: Numbers per token.
        layers: Blocks of attention and MLP.
        heads: Attention heads of a block.
        rank: r, of every adapter. A starts at ``N(0, 1 / d)``, B at zero.
        batch: Sequences of 24 tokens per step.
        points: Sequences per task to train on.
        test: Sequences per task that ``excess`` is measured on.
        shift: How far a task's language is from the one its model knows: 0 is the same one, 1 another one.
        pool: Pre-trained models per split; pre-training one takes seconds.
        seed: Of the pre-trained models.
        pretraining_steps: Steps of Adam.
        pretraining_batch: Sequences per step of it.
        pretraining_lr: Its step size, which falls linearly to zero.
    """

    def __init__(
        self,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        rank: int = 8,
        batch: int = 8,
        points: int = 4096,
        test: int = 128,
        shift: float = 0.5,
        pool: int = 8,
        seed: int = 0,
        pretraining_steps: int = 600,
        pretraining_batch: int = 16,
        pretraining_lr: float = 3e-3,
    ) -> None:
        if rank < 1:
            raise UserError(f"adapters of rank {rank} train nothing: choose 1 to {width}")
        pretraining = pretraining_steps, pretraining_batch, pretraining_lr
        super().__init__(Sizes(width, layers, heads, rank, batch, points, test, shift, *pretraining), pool, seed)

    @staticmethod
    def trained(name: str) -> bool:
        return is_adapter(name)

    def start(self, count: int, generator: torch.Generator) -> Params:
        return initial(structure(self.sizes), count, generator, is_adapter)


class AttentionPairs(Adaptation):
    """The query, key, value and output matrices of a small pre-trained transformer; the rest is frozen.

    Args:
        fresh: Whether these matrices start from scratch, ``N(0, 1 / fan-in)``, and not as they were pre-trained.
        width: Numbers per token.
        layers: Blocks of attention and MLP.
        heads: Attention heads of a block; each has a query-key and a value-output pair of its own.
        batch: Sequences of 24 tokens per step.
        points: Sequences per task to train on.
        test: Sequences per task that ``excess`` is measured on.
        shift: How far a task's language is from the one its model knows: 0 is the same one, 1 another one.
        pool: Pre-trained models per split; pre-training one takes seconds.
        seed: Of the pre-trained models.
        pretraining_steps: Steps of Adam.
        pretraining_batch: Sequences per step of it.
        pretraining_lr: Its step size, which falls linearly to zero.
    """

    def __init__(
        self,
        fresh: bool = False,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        batch: int = 8,
        points: int = 4096,
        test: int = 128,
        shift: float = 0.5,
        pool: int = 8,
        seed: int = 0,
        pretraining_steps: int = 600,
        pretraining_batch: int = 16,
        pretraining_lr: float = 3e-3,
    ) -> None:
        pretraining = pretraining_steps, pretraining_batch, pretraining_lr
        super().__init__(Sizes(width, layers, heads, 0, batch, points, test, shift, *pretraining), pool, seed)
        self.fresh = fresh

    @staticmethod
    def trained(name: str) -> bool:
        return is_attention(name)

    def start(self, count: int, generator: torch.Generator) -> Params:
        return initial(structure(self.sizes), count, generator, is_attention) if self.fresh else {}
