"""What a rule has met in training, and what it has not.

A rule that reads ratios and spectra runs on every network; what it has learned holds for networks like those that it
was trained on. They are told apart by what they are made of: kinds of layers, activation functions, and groups.
"""

import warnings
from collections.abc import Iterable
from statistics import median
from typing import NamedTuple, Self

from torch import Tensor, nn

from meta_teleport.params import Params
from meta_teleport.symmetry.symmetry import Symmetry

WATCHED, FIRST, LAST = 50, 3, 10
"""So many steps are watched, and the median of the last of them is held against the least of the first."""

REMEDY = "compare it with torch.optim.AdamW, alone or in mt.TeleportedOptimizer, and expect these to be better"


class Experience(NamedTuple):
    """Names of what networks are made of, sorted: ``layers`` (classes of ``torch.nn``, all matrices and vectors in
    layers of other classes counting as Linear), ``activations``, and ``groups`` at the sites."""

    layers: tuple[str, ...]
    activations: tuple[str, ...]
    groups: tuple[str, ...]

    @classmethod
    def of_tasks(cls, params: Params, symmetry: Symmetry) -> Self:
        """What tasks with parameters ``(tasks, *shape)`` are made of."""
        activations = {_plain(layer.activation.name) for layer in symmetry.layers} - {"identity"}
        layers = {_kind(p.ndim - 1) for p in params.values()}
        return cls(*(tuple(sorted(names)) for names in (layers, activations, _groups(symmetry))))

    @classmethod
    def of_model(cls, model: nn.Module, symmetry: Symmetry) -> Self:
        """What a model is made of, as far as its modules show: not the functions that they call."""
        layers: set[str] = set()
        activations: set[str] = set()
        for module in model.modules():
            own = [p for p in module.parameters(recurse=False) if p.requires_grad]
            name, home = type(module).__name__, type(module).__module__
            if own and home.startswith("torch.nn."):
                layers.add(name)
            elif own:
                layers |= {_kind(p.ndim) for p in own}
            elif home == "torch.nn.modules.activation":
                activations.add(_plain(name))
        return cls(*(tuple(sorted(names)) for names in (layers, activations, _groups(symmetry))))

    @classmethod
    def joined(cls, all_of_them: Iterable["Experience"]) -> Self:
        """Everything that any of them has met."""
        fields = zip(*all_of_them, strict=True)
        return cls(*(tuple(sorted({name for names in field for name in names})) for field in fields))

    def lacks(self, other: "Experience") -> list[str]:
        """What the other has met and this has not, in words."""
        kinds = {"layers": "", "activations": "", "groups": "sites with "}
        missing = ((kind, sorted(set(getattr(other, kind)) - set(getattr(self, kind)))) for kind in kinds)
        return [f"{kinds[kind]}{name}" for kind, names in missing for name in names]

    def warn_of(self, model: nn.Module, symmetry: Symmetry) -> None:
        """Warns of a model with something that has not been met."""
        missing = self.lacks(Experience.of_model(model, symmetry))
        if missing:
            warnings.warn(
                f"this rule has never met {', '.join(missing)}: it was trained on {', '.join(self.layers)} with "
                f"{', '.join(self.activations) or 'no activation'} and {', '.join(self.groups)} at the sites; "
                f"{REMEDY}",
                stacklevel=4,
            )


class Fall:
    """Whether the loss falls in the first steps that a rule takes; warns if it does not, where it is ``watched``."""

    def __init__(self, watched: bool) -> None:
        self.watched, self.losses = watched, list[float]()

    def watch(self, loss: Tensor, step: int) -> None:
        """The loss before ``step``, counted from 0."""
        if not self.watched or step >= WATCHED or step != len(self.losses):
            return
        self.losses.append(float(loss))
        if len(self.losses) < WATCHED:
            return
        first, last = min(self.losses[:FIRST]), median(self.losses[-LAST:])
        if not last < first:
            warnings.warn(
                f"the loss was {first:.3g} at first and is {last:.3g} after {WATCHED} steps: this rule does not suit "
                f"this problem; {REMEDY}",
                stacklevel=6,
            )


def _groups(symmetry: Symmetry) -> set[str]:
    groups = [site.group for site in symmetry.continuous.sites]
    return {f"{type(group).__name__}{' in blocks' if group.blocks else ''}" for group in groups}


def _plain(activation: str) -> str:
    """Of what name an activation counts: ReLU and leaky ReLU as one."""
    name = activation.lower().replace("_", "")
    return "relu" if name == "leakyrelu" else name


def _kind(ndim: int) -> str:
    return "Linear" if ndim <= 2 else f"{ndim}-dimensional parameters"
