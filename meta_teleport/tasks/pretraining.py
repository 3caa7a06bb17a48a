"""Small transformers pre-trained on languages of their own, and the tasks that go on from there."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from meta_teleport.params import Params, detach, value_and_grad
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.language import FROZEN, Language, LanguageTasks
from meta_teleport.tasks.transformer import Names, Sizes, initial, is_adapter, structure, symmetry_among


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
    """The parameters after Adam (Kingma and Ba 2015) with a step size that falls linearly from ``lr`` to zero.

    Adam goes number by number, so one optimizer of the stacked parameters is one for each model.
    """
    params = {name: p.clone() for name, p in tasks.params.items()}
    optimizer = torch.optim.Adam(params.values(), lr)
    for number in range(steps):
        _, gradients = value_and_grad(partial(tasks.loss, step=torch.full((tasks.count,), number)), params)
        for name, p in params.items():
            p.grad = gradients[name]
        optimizer.param_groups[0]["lr"] = lr * (1 - number / steps)
        optimizer.step()
    return detach(params)
