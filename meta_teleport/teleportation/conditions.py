"""What must hold before a teleport of a model, or it is refused."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.symmetry.requirements import described, require_movable
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.acceptance import all_finite
from meta_teleport.teleportation.moment_map import has_moment_map


def trainable_parameters(model: nn.Module) -> Params:
    """Copies of the model's trainable parameters as ``(1, *shape)``.

    Raises ``UserError`` for models that cannot move, and for parameters that are not finite, or not all of one device
    and precision.
    """
    require_movable(model)
    require_alike(model)
    params = {n: p.detach().clone().unsqueeze(0) for n, p in model.named_parameters() if p.requires_grad}
    for name, parameter in params.items():
        if not all_finite(parameter):
            raise UserError(f"parameter '{name}' is not finite: go back to a checkpoint from before it diverged")
    return params


def require_alike(model: nn.Module) -> None:
    """Raises ``UserError`` where the trainable parameters are not all of one device and precision."""
    trainable = (p for p in model.parameters() if p.requires_grad)
    places = {(str(p.device), str(p.dtype).removeprefix("torch.")) for p in trainable}
    if len(places) > 1:
        shown = ", ".join(" ".join(place) for place in sorted(places))
        raise UserError(f"the trainable parameters are {shown}: bring them to one device and one precision")


def trainable_sites(model: nn.Module, symmetry: Symmetry) -> Symmetry:
    """The continuous sites whose parameters are all trainable.

    Raises ``UserError`` if that is no symmetry, if there are none, if a site belongs to another model, or if its action
    depends on data.
    """
    if not isinstance(symmetry, Symmetry):
        raise UserError(f"the symmetry is {described(symmetry)}: give what find_symmetries(model, inputs) returns")
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
