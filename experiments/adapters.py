"""LoRA adapters of small transformers as a batch of tasks: each adapts its own pre-trained model to its own language.

The model is pre-trained on one language and adapted to another one near it. Only the adapters ``B A`` beside every
linear map of the blocks are trained (Hu et al. 2022): A starts random, B at zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from languages import LENGTH, VOCABULARY, Language
from teleported_training import Method, train
from torch import Tensor, nn
from torch.nn import functional as F

from meta_teleport.detection.detect import find_symmetries
from meta_teleport.learned.classical import Adam
from meta_teleport.params import Params, functional
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.family import Tasks, mini_batch

FROZEN = "frozen."


@dataclass(frozen=True)
class Sizes:
    """Of the model, its adapters, its data and its pre-training."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    rank: int = 8
    batch: int = 8
    points: int = 4096
    test: int = 128
    shift: float = 0.5
    pretraining_steps: int = 600
    pretraining_batch: int = 16
    pretraining_lr: float = 3e-3


class Adapted(nn.Module):
    """``W x + B A x`` with W ``(m, d)``, A ``(r, d)``, B ``(m, r)``."""

    def __init__(self, d: int, m: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(m, d))
        self.A, self.B = nn.Parameter(torch.empty(rank, d)), nn.Parameter(torch.empty(m, rank))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + x @ self.A.T @ self.B.T


class Block(nn.Module):
    """Causal attention and an MLP, each behind a normalization, on a residual stream ``(n, length, width)``."""

    def __init__(self, width: int, heads: int, rank: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (Adapted(width, width, rank) for _ in range(4))
        self.up, self.down = Adapted(width, 2 * width, rank), Adapted(2 * width, width, rank)

    def forward(self, x: Tensor) -> Tensor:
        h = F.layer_norm(x, x.shape[-1:])
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for f in (self.query, self.key, self.value))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        x = x + self.out(mixed.transpose(-2, -3).flatten(-2))
        return x + self.down(F.gelu(self.up(F.layer_norm(x, x.shape[-1:]))))


class Decoder(nn.Module):
    """A transformer that gives the logits of the next token, ``(n, length)`` to ``(n, length, vocabulary)``."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(VOCABULARY, sizes.width))
        self.position = nn.Parameter(torch.empty(LENGTH, sizes.width))
        self.blocks = nn.Sequential(*(Block(sizes.width, sizes.heads, sizes.rank) for _ in range(sizes.layers)))
        self.logits = nn.Parameter(torch.empty(VOCABULARY, sizes.width))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(F.one_hot(tokens, VOCABULARY).to(self.token.dtype) @ self.token + self.position)
        return F.layer_norm(x, x.shape[-1:]) @ self.logits.T


@dataclass(frozen=True)
class LanguageTasks(Tasks):
    """Next-token prediction. ``data`` holds ``sequences`` (tasks, points, length + 1) to train on, fresh ``test`` ones,
    ``truth``, the true logarithms of the probabilities of their tokens, and the parameters that are not trained, their
    names behind ``frozen.``."""

    model: Decoder
    network_symmetry: Symmetry
    batch: int

    @property
    def symmetry(self) -> Symmetry:
        return self.network_symmetry

    def inputs(self, step: Tensor) -> LayerInput:
        return LayerInput(mini_batch(self.data["sequences"], step, self.batch)[..., :-1].mT)

    def outputs(self, params: Params, step: Tensor) -> Tensor:
        return self._logits(params, mini_batch(self.data["sequences"], step, self.batch))

    def loss(self, params: Params, step: Tensor) -> Tensor:
        sequences = mini_batch(self.data["sequences"], step, self.batch)
        return -self._log_probabilities(params, sequences).mean((1, 2))

    def excess(self, params: Params) -> Tensor:
        """The mean loss on the test sequences above that of the true probabilities, in nats per token ``(tasks,)``: an
        estimate of the Kullback-Leibler divergence of the model from the language."""
        with torch.no_grad():
            return (self.data["truth"] - self._log_probabilities(params, self.data["test"])).mean((1, 2))

    def _logits(self, params: Params, sequences: Tensor) -> Tensor:
        frozen = {name.removeprefix(FROZEN): p for name, p in self.data.items() if name.startswith(FROZEN)}
        return functional(self.model)({**frozen, **params}, sequences[..., :-1])

    def _log_probabilities(self, params: Params, sequences: Tensor) -> Tensor:
        chosen = self._logits(params, sequences).log_softmax(-1).gather(-1, sequences[..., 1:].unsqueeze(-1))
        return chosen.squeeze(-1)


def initial(model: Decoder, count: int, generator: torch.Generator) -> Params:
    """Fresh parameters: ``N(0, 1 / fan-in)``, embeddings ``N(0, 1)``, and B at zero."""
    params = {}
    for name, p in model.named_parameters():
        fan_in = 1 if name in ("token", "position") else p.shape[-1]
        params[name] = torch.randn(count, *p.shape, generator=generator) / fan_in**0.5
    return {name: torch.zeros_like(p) if name.endswith(".B") else p for name, p in params.items()}


@cache
def adapter_symmetry(sizes: Sizes) -> Symmetry:
    """The sites that the library finds in a model, those between the two factors of an adapter alone."""
    model = Decoder(sizes)
    drawn = initial(model, 1, torch.Generator().manual_seed(0))
    model.load_state_dict({name: p[0] for name, p in drawn.items()})
    found = find_symmetries(model, torch.zeros(2, LENGTH, dtype=torch.long))
    return replace(found, sites=tuple(site for site in found.sites if all(map(is_adapter, site.parameters))))


def is_adapter(name: str) -> bool:
    """Whether a parameter is a factor of an adapter."""
    return name.endswith((".A", ".B"))


def adaptation(sizes: Sizes, count: int, seed: int) -> tuple[LanguageTasks, Tensor]:
    """``count`` models, each pre-trained on its own language, as tasks that adapt them to the shifted ones; and the
    excess of the pre-trained models over their own languages ``(tasks,)``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):  # only its structure is used: every task brings parameters of its own
        model = Decoder(sizes)

    def tasks(language: Language, params: Params, trained: Callable[[str], bool], **options: Any) -> LanguageTasks:
        sequences, _ = language.write(sizes.points, generator)
        test, truth = language.write(sizes.test, generator)
        frozen = {FROZEN + name: p for name, p in params.items() if not trained(name)}
        data = {"sequences": sequences, "test": test, "truth": truth, **frozen}
        return LanguageTasks({name: p for name, p in params.items() if trained(name)}, data, model, **options)

    params, language = initial(model, count, generator), Language.draw(count, generator)
    pretraining = tasks(
        language,
        params,
        lambda name: not is_adapter(name),
        network_symmetry=Symmetry(()),
        batch=sizes.pretraining_batch,
    )
    lr = torch.full((count,), sizes.pretraining_lr)
    pretrained = train(pretraining, Method(Adam), lr, sizes.pretraining_steps, pretraining.excess, measured=1)
    shifted = language.shifted(sizes.shift, generator)
    params = {**params, **pretrained.params}
    adapting = tasks(shifted, params, is_adapter, network_symmetry=adapter_symmetry(sizes), batch=sizes.batch)
    return adapting, pretrained.errors[-1]
