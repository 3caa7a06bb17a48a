"""A proposed teleport of one model, carried out only if it is safe."""

from collections.abc import Callable

import torch
from torch import Tensor

from meta_teleport.params import Params
from meta_teleport.symmetry.groups import GL
from meta_teleport.symmetry.symmetry import Element, Symmetry
from meta_teleport.teleportation.drift import loss_drift

Loss = Callable[[Params], Tensor]


def teleported(
    symmetry: Symmetry, params: Params, algebra: tuple[Tensor, ...], tolerance: float, loss: Loss | None = None
) -> tuple[Params, tuple[Element, ...]] | None:
    """``exp(T) . w`` for parameters ``(1, *shape)``, and the pairs ``(g, g^-1)`` that have acted; or None.

    None if what has moved is not finite, if ``eps |g|_1 |g^-1|_1`` of a GL element is above ``tolerance`` (by about so
    much rounding moves the loss), or if ``loss`` is given and drifts by more. One number is read on the host without a
    loss, two with it.
    """
    elements = symmetry.exp_pairs(algebra)
    moved = symmetry.move(params, elements)
    if not _is_sound(symmetry, moved, elements, tolerance):
        return None
    if loss is not None and not bool(loss_drift(loss(params), loss(moved)) <= tolerance):
        return None
    return moved, elements


def _is_sound(symmetry: Symmetry, moved: Params, elements: tuple[Element, ...], tolerance: float) -> bool:
    touched = {name for site in symmetry.sites for name in site.parameters}
    sizes = torch._foreach_norm([moved[name] for name in touched])
    sound = torch.isfinite(torch.stack(sizes)).all()
    for site, (g, inverse) in zip(symmetry.sites, elements, strict=True):
        if isinstance(site.group, GL):
            condition = (torch.linalg.matrix_norm(g, 1) * torch.linalg.matrix_norm(inverse, 1)).max()
            sound = sound & (condition * torch.finfo(g.dtype).eps <= tolerance)
    return bool(sound)
