"""Random directions in the algebra, as large as those that were chosen."""

from collections.abc import Sequence

import torch
from torch import Tensor

from meta_teleport.params import per_task


def random_algebra(like: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Algebra coordinates of the same shapes and, task by task and site by site, the same norms, in directions
    drawn uniformly; the control for elements that were chosen."""
    return tuple(_same_norm(t, torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)) for t in like)


def _same_norm(t: Tensor, drawn: Tensor) -> Tensor:
    return drawn * per_task(t.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1), drawn)
