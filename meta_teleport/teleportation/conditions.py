"""What must hold before a teleport of a model, or it is refused; and after it, or it is not accepted."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.symmetry.group import Group
from meta_teleport.symmetry.requirements import require_movable
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.moment_map import has_moment_map


def trainable_parameters(model: nn.Module) -> Params:
    """Copies of the model's trainable parameters as ``(1, *shape)``.

    Raises ``UserError`` for models that cannot move, and for parameters that are not finite, or not all of one device
    and precision.
    """
    require_movable(model)
    params = {n: p.detach().clone().unsqueeze(0) for n, p in model.named_parameters() if p.requires_grad}
    places = {(str(p.device), str(p.dtype).removeprefix("torch.")) for p in params.values()}
    if len(places) > 1:
        shown = ", ".join(" ".join(place) for place in sorted(places))
        raise UserError(f"the trainable parameters are {shown}: bring them to one device and one precision")
    for name, parameter in params.items():
        if not _is_finite(parameter):
            raise UserError(f"parameter '{name}' is not finite: go back to a checkpoint from before it diverged")
    return params


def trainable_sites(model: nn.Module, symmetry: Symmetry) -> Symmetry:
    """The continuous sites whose parameters are all trainable.

    Raises ``UserError`` if there are none, if a site belongs to another model, or if its action depends on data.
    """
    continuous = symmetry.continuous
    known = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    require_linear(continuous)
    continuous.require_fit(model)
    if not continuous.sites:
        raise UserError(
            "the symmetry has no site with a Lie algebra, so there is nothing to search: its refusals give the reasons"
        )
    free = tuple(site for site in continuous.sites if all(known[name] for name in site.parameters))
    if not free:
        raise UserError("every site has a frozen parameter: set requires_grad on the parameters of one that may move")
    return replace(continuous, sites=free)


def require_tolerance(tolerance: float) -> None:
    """Raises ``UserError`` for a bound on the drift that is none."""
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise UserError(f"tolerance={tolerance!r}: give a number that is not negative")


def require_linear(symmetry: Symmetry) -> None:
    """Raises ``UserError`` if an action depends on data or is not linear: gradients have no law there."""
    for site in symmetry.sites:
        if site.needs_inputs or not has_moment_map(site):
            raise UserError(
                f"site '{site.name}' acts by {type(site).__name__}, which is not the same linear map for every input: "
                "gradients and optimizer state can only follow exact sites, leave this one out"
            )


def require_finite(what: str, value: Tensor) -> Tensor:
    """The value ``(1,)`` at the model's parameters. Raises ``UserError`` if no search can start from there."""
    if not bool(torch.isfinite(value).all()):
        raise UserError(
            f"the {what} is {float(value)} at the model's parameters: teleport on another batch, or before it diverges"
        )
    return value


def condition_number(group: Group, g: Tensor) -> float:
    """The largest :meth:`Group.condition` over all tasks and blocks; inf if g is singular, or not finite."""
    return float(group.condition(g).max()) if bool(torch.isfinite(g).all()) else inf


def element_fault(site: Site, g: Tensor, limit: float = inf) -> str:
    """Why an element cannot be used, in one line; empty if it can.

    It is not finite, or singular, or its condition number is above ``limit``: rounding moves the loss by about eps
    times that.
    """
    if not bool(torch.isfinite(g).all()):
        return f"the element at site '{site.name}' is not finite"
    condition = condition_number(site.group, g)
    if condition == inf:
        return f"the element at site '{site.name}' is singular"
    if condition <= limit:
        return ""
    return f"the element at site '{site.name}' is ill-conditioned: {condition:.1e}, and the limit is {limit:.1e}"


def element_faults(symmetry: Symmetry, elements: Sequence[Tensor], limit: float) -> str:
    """The first fault of one element per site; empty if there is none."""
    faults = (element_fault(site, g, limit) for site, g in zip(symmetry.sites, elements, strict=True))
    return next(filter(None, faults), "")


def params_fault(params: Params) -> str:
    """Why moved parameters cannot be used; empty if they can."""
    for name, parameter in params.items():
        if not _is_finite(parameter):
            return f"the moved parameter '{name}' is not finite"
    return ""


def _is_finite(tensor: Tensor) -> bool:
    """A finite sum has finite terms, and is quick; one that is not may have overflowed."""
    return isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def drift_fault(drift: float, tolerance: float) -> str:
    """Why a teleport with this drift cannot be accepted; empty if it can."""
    return "" if drift <= tolerance else f"the loss moved by {drift:.1e}, and the tolerance is {tolerance:.1e}"
