"""Next-token prediction on random languages with known probabilities: second-order Markov chains."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from meta_teleport.params import Params, functional
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Tasks, mini_batch

VOCABULARY, LENGTH, SHARPNESS = 32, 24, 1.5
FROZEN = "frozen."
CHUNK = 8


class Language:
    """One chain per task, ``p(next | x_t, x_(t-1)) = softmax(U[x_t] + V[x_(t-1)])``.

    ``present`` and ``previous`` are the tables U and V, ``(tasks, vocabulary, vocabulary)``.
    """

    def __init__(self, present: Tensor, previous: Tensor) -> None:
        self.present, self.previous = present, previous

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> Self:
        """Tables of independent numbers ``N(0, 1.5^2)``, in float32."""
        shape = (2, count, VOCABULARY, VOCABULARY)
        return cls(*(SHARPNESS * torch.randn(shape, generator=generator, dtype=torch.float32)))

    def select(self, index: Tensor) -> "Language":
        """The languages at ``index`` (integers, repetition allowed)."""
        return Language(self.present[index], self.previous[index])

    def shifted(self, shift: float, generator: torch.Generator) -> "Language":
        """Languages whose tables are ``sqrt(1 - shift^2)`` times these plus ``shift`` times fresh ones."""
        kept, fresh = (1 - shift**2) ** 0.5, Language.draw(len(self.present), generator)
        return Language(kept * self.present + shift * fresh.present, kept * self.previous + shift * fresh.previous)

    def write(self, points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences ``(tasks, points, length + 1)`` and the log-probabilities ``(tasks, points, length)`` of all
        tokens but the first, which is uniform; the second depends on the first alone."""
        count = len(self.present)
        row = torch.arange(count).unsqueeze(1)
        tokens = [torch.randint(VOCABULARY, (count, points), generator=generator)]
        truth = []
        for _ in range(LENGTH):
            logits = self.present[row, tokens[-1]]
            if len(tokens) > 1:
                logits = logits + self.previous[row, tokens[-2]]
            logarithms = logits.log_softmax(-1)
            following = torch.multinomial(logarithms.exp().flatten(0, 1), 1, generator=generator).view(count, points)
            truth.append(logarithms.gather(-1, following.unsqueeze(-1)).squeeze(-1))
            tokens.append(following)
        return torch.stack(tokens, -1), torch.stack(truth, -1)


@dataclass(frozen=True)
class LanguageTasks(Tasks):
    """Next-token prediction. ``data`` holds ``sequences`` (tasks, points, length + 1) to train on, fresh ``test`` ones,
    ``truth``, the true logarithms of the probabilities of their tokens, and the parameters that are not trained, their
    names behind ``frozen.``. The model maps tokens ``(n, length)`` to logits ``(n, length, vocabulary)``."""

    model: nn.Module
    network_symmetry: Symmetry
    batch: int

    @property
    def symmetry(self) -> Symmetry:
        return self.network_symmetry

    def inputs(self, step: Tensor) -> LayerInput:
        return LayerInput(self._sequences(step)[..., :-1].mT)

    def outputs(self, params: Params, step: Tensor) -> Tensor:
        return self._logits(params, self._sequences(step))

    def loss(self, params: Params, step: Tensor) -> Tensor:
        return -self._log_probabilities(params, self._sequences(step)).mean((1, 2))

    @torch.no_grad()
    def excess(self, params: Params) -> Tensor:
        """The mean loss on the test sequences above that of the true probabilities, in nats per token ``(tasks,)``: an
        estimate of the Kullback-Leibler divergence of the model from the language. Not differentiable."""
        found = []
        for index in torch.arange(self.count, device=self.data["truth"].device).split(CHUNK):  # memory
            part = self.select(index)
            chosen = {name: p[index] for name, p in params.items()}
            found.append((part.data["truth"] - part._log_probabilities(chosen, part.data["test"])).mean((1, 2)))
        return torch.cat(found)

    def _sequences(self, step: Tensor) -> Tensor:
        return mini_batch(self.data["sequences"], step, self.batch)

    def _logits(self, params: Params, sequences: Tensor) -> Tensor:
        frozen = {name.removeprefix(FROZEN): p for name, p in self.data.items() if name.startswith(FROZEN)}
        return functional(self.model)({**frozen, **params}, sequences[..., :-1])

    def _log_probabilities(self, params: Params, sequences: Tensor) -> Tensor:
        chosen = self._logits(params, sequences).log_softmax(-1).gather(-1, sequences[..., 1:].unsqueeze(-1))
        return chosen.squeeze(-1)
