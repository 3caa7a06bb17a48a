"""Small transformers pre-trained on languages of their own, and the tasks that go on from there."""

from typing import NamedTuple

import torch
from torch import Tensor

from meta_teleport.params import Params, axpy, per_task
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.language import FROZEN, Language, LanguageTasks
from meta_teleport.tasks.transformer import Names, Sizes, initial, is_adapter, structure, symmetry_among

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Pretrained(NamedTuple):
    """Models with parameters ``(models, *shape)``, each trained on its own language, and their ``excess`` over it
    ``(models,)``, in nats per token. Their adapters, if any, are as they were drawn."""

    params: Params
    language: Language
    excess: Tensor

    def select(self, index: Tensor) -> "Pretrained":
        """The models at ``index`` (integers, repetition allowed)."""
        params = {name: p[index] for name, p in self.params.items()}
        return Pretrained(params, self.language.select(index), self.excess[index])


def pretrained(sizes: Sizes, count: int, generator: torch.Generator) -> Pretrained:
    """``count`` models, trained side by side, in float32 on the CPU."""
    params, language = initial(structure(sizes), count, generator), Language.draw(count, generator)
    batch, symmetry = sizes.pretraining_batch, Symmetry(())
    tasks = written(sizes, params, language, lambda name: not is_adapter(name), batch, symmetry, generator)
    trained = adam(tasks, sizes.pretraining_lr, sizes.pretraining_steps)
    return Pretrained({**params, **trained}, language, tasks.excess(trained))


def shifted(sizes: Sizes, models: Pretrained, trained: Names, generator: torch.Generator) -> LanguageTasks:
    """Tasks that train some parameters of these models on languages shifted from their own."""
    language = models.language.shifted(sizes.shift, generator)
    symmetry = symmetry_among(sizes, trained)
    return written(sizes, models.params, language, trained, sizes.batch, symmetry, generator)


def written(
    sizes: Sizes,
    params: Params,
    language: Language,
    trained: Names,
    batch: int,
    symmetry: Symmetry,
    generator: torch.Generator,
) -> LanguageTasks:
    """Tasks on texts of these languages that train some parameters and freeze the others."""
    sequences, _ = language.write(sizes.points, generator)
    test, truth = language.write(sizes.test, generator)
    frozen = {FROZEN + name: p for name, p in params.items() if not trained(name)}
    data = {"sequences": sequences, "test": test, "truth": truth, **frozen}
    moving = {name: p for name, p in params.items() if trained(name)}
    return LanguageTasks(moving, data, structure(sizes), symmetry, batch)


def adam(tasks: Tasks, lr: float, steps: int) -> Params:
    """The parameters after Adam (Kingma and Ba 2015) with a step size that falls linearly from ``lr`` to zero."""
    params = tasks.params
    first = second = {name: torch.zeros_like(p) for name, p in params.items()}
    for number in range(steps):
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        loss = tasks.loss(leaves, torch.full((tasks.count,), number))
        gradients = dict(zip(leaves, torch.autograd.grad(loss.sum(), list(leaves.values())), strict=True))
        first = {name: (1 - BETA1) * g + BETA1 * first[name] for name, g in gradients.items()}
        second = {name: (1 - BETA2) * g.square() + BETA2 * second[name] for name, g in gradients.items()}
        t = torch.full((tasks.count,), number + 1.0, dtype=loss.dtype)
        rate, correction = torch.full_like(t, lr) / (1 - BETA1**t), 1 - BETA2**t
        update = {
            name: -per_task(rate, m) * m / ((second[name] / per_task(correction, m)).sqrt() + EPSILON)
            for name, m in first.items()
        }
        params = axpy(1 - number / steps, update, params)
    return params
