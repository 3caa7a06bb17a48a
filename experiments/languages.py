"""Random languages with known probabilities: second-order Markov chains."""

import torch
from torch import Tensor

VOCABULARY, LENGTH, SHARPNESS = 32, 24, 1.5


class Language:
    """One chain per task, ``p(next | x_t, x_(t-1)) = softmax(U[x_t] + V[x_(t-1)])``.

    ``present`` and ``previous`` are the tables U and V, ``(tasks, vocabulary, vocabulary)``.
    """

    def __init__(self, present: Tensor, previous: Tensor) -> None:
        self.present, self.previous = present, previous

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> "Language":
        """Tables of independent numbers ``N(0, 1.5^2)``."""
        shape = (2, count, VOCABULARY, VOCABULARY)
        return cls(*(SHARPNESS * torch.randn(shape, generator=generator)))

    def shifted(self, shift: float, generator: torch.Generator) -> "Language":
        """Languages whose tables are ``sqrt(1 - shift^2)`` times these plus ``shift`` times fresh ones."""
        old, fresh = (1 - shift**2) ** 0.5, Language.draw(len(self.present), generator)
        return Language(old * self.present + shift * fresh.present, old * self.previous + shift * fresh.previous)

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
