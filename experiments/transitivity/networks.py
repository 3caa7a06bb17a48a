"""The small networks of transitivity.py, each with actions, and a batch that these keep the outputs on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import meta_teleport as mt
from meta_teleport.models import MLP
from meta_teleport.params import Params
from meta_teleport.symmetry.mlp import mlp_symmetry
from meta_teleport.symmetry.symmetry import Symmetry

WIDE, SPREAD = 40, 5.0

ACTIONS = {"GL": "linear", "scaling": "scaling", "(a)": "general_linear", "(b)": "pseudo_inverse"}


class Attention(nn.Module):
    """Self-attention with two heads of width 2 on sequences of width 4, by four linear maps."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(4, 4, bias=bias) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:  # (n, length, 4)
        q, k, v = (f(x).unflatten(-1, (2, 2)).transpose(1, 2) for f in (self.query, self.key, self.value))
        weights = (q @ k.mT / 2**0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4, 3)
    )


@dataclass(frozen=True)
class Case:
    """A network ``make()`` in float64, the names of its actions (``found``: the sites that detection finds), the shape
    of one input, the number of points (None: as many as the actions can carry, or ``WIDE``), and how many inputs show
    the function."""

    name: str
    make: Callable[[], nn.Module]
    actions: tuple[str, ...]
    shape: tuple[int, ...]
    points: int | None = None
    inputs: int = 400

    @property
    def key(self) -> str:
        return f"{self.name}, {' + '.join(self.actions)}"

    def build(self) -> nn.Module:
        return self.make().double()

    def symmetries(self) -> list[Symmetry]:
        model = self.build()
        if isinstance(model, MLP):
            return [mlp_symmetry(model, ACTIONS[action]) for action in self.actions]
        return [mt.find_symmetries(model, torch.randn(2, *self.shape, dtype=torch.float64)).continuous]

    def batch(self, seed: int, params: Params) -> Tensor:
        """Inputs ``(n, ...)``, standard normal."""
        limits = [site.limit(params) for symmetry in self.symmetries() for site in symmetry.sites]
        widest = min((limit for limit in limits if limit is not None), default=WIDE)
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.points or widest, *self.shape, generator=generator, dtype=torch.float64)

    def many(self) -> Tensor:
        """Inputs that show the function: many, and from a wide distribution, so that every kink is seen."""
        drawn = torch.randn(self.inputs, *self.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return SPREAD * drawn


def _mlp(widths: tuple[int, ...], activation: str, actions: tuple[str, ...], bias: bool = False) -> Case:
    name = f"{activation} {'-'.join(map(str, widths))}{' with biases' if bias else ''}"
    return Case(name, lambda: MLP(widths, activation, bias=bias), actions, widths[:1])


LINEAR = [
    _mlp(widths, "identity", ("GL",), bias)
    for widths in ((6, 3, 4), (3, 6, 4), (6, 4, 3), (5, 4, 4, 3))
    for bias in (False, True)
]
SCALED = [_mlp(w, "leaky_relu", ("scaling",), bias) for w in ((6, 5, 3), (6, 5, 5, 3)) for bias in (False, True)]
ON_BATCHES = [
    _mlp(w, "leaky_relu", actions, bias)
    for w in ((6, 5, 3), (6, 5, 5, 3))
    for bias in (False, True)
    for actions in (("(a)",), ("(b)",), ("(a)", "(b)"))
]
BOUNDED = [_mlp(w, "tanh", ("(b)",), bias) for w in ((6, 5, 3), (6, 5, 5, 3)) for bias in (False, True)]
FOUND = [
    Case("attention", lambda: Attention(False), ("found",), (3, 4), inputs=100),
    Case("attention with biases", lambda: Attention(True), ("found",), (3, 4), inputs=100),
    Case("CNN 1-3-2-3 with biases", cnn, ("found",), (1, 6, 6)),
]
ONE_NUMBER = [
    Case(f"{name} 6-5-1, one point", lambda name=name: MLP((6, 5, 1), name), actions, (6,), 1)  # type: ignore[misc]
    for name, actions in (("leaky_relu", ("(a)",)), ("leaky_relu", ("(a)", "(b)")), ("tanh", ("(b)",)))
]
CASES = (*LINEAR, *SCALED, *ON_BATCHES, *BOUNDED, *FOUND, *ONE_NUMBER)
SMOKE = (LINEAR[0], LINEAR[4], SCALED[1], ON_BATCHES[2])
