"""Small networks made on the spot, and what detection must say of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from meta_teleport.detection.detect import find_symmetries
from meta_teleport.symmetry.groups import GL, Permutation, PositiveScaling, SignFlips
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tracing.trace import Examples

GROUPS = {GL: "gl", PositiveScaling: "scale", SignFlips: "flip", Permutation: "permute"}


class Net(nn.Module):
    """Modules and parameters by name, and what to do with them: ``forward(net, *inputs)``."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


@dataclass(frozen=True)
class Case:
    """A model, its inputs, its sites as :func:`described`, and what a refusal must say."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Examples]
    sites: tuple[str, ...] = ()
    refusal: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def expected(self) -> list[str]:
        """The sites, and the parameters of each of their sides, in alphabetical order."""
        lines = (line.split(": ") for line in self.sites)
        return sorted(_line(group, [side.split() for side in sides.split(" > ")]) for group, sides in lines)

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()


@cache
def found(case: Case) -> Symmetry:
    """What the walk alone finds, without the check on numbers."""
    return find_symmetries(case.model(), case.inputs(), check=False)


def described(site: Site) -> str:
    """A site in one line: ``gl 4x2: producers > consumers`` for GL(4) in two blocks, names in alphabetical order."""
    size = "x".join(map(str, (site.group.k, *site.group.blocks)))
    return _line(
        f"{GROUPS[type(site.group)]} {size}", [[v.name for v in site.producers], [v.name for v in site.consumers]]
    )


def _line(group: str, sides: list[list[str]]) -> str:
    return f"{group}: {' > '.join(' '.join(sorted(names)) for names in sides)}"


def normal(*shape: int) -> Callable[[], Tensor]:
    """Inputs drawn anew, always the same."""
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(1))


def weight(*shape: int) -> Tensor:
    """A parameter of this shape."""
    return torch.randn(shape)


def chain(*modules: nn.Module) -> nn.Sequential:
    """Modules one after the other, named 0, 1, 2, ..."""
    return nn.Sequential(*modules)
