"""Sites named by hand, for models that cannot be traced."""

from collections.abc import Mapping, Sequence

from torch import nn

from meta_teleport.errors import UserError
from meta_teleport.symmetry.groups import GL, Group, Orthogonal, Permutation, PositiveScaling
from meta_teleport.symmetry.requirements import require_movable
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.views import View

GROUPS: dict[str, type[Group]] = {
    "gl": GL,
    "orthogonal": Orthogonal,
    "scaling": PositiveScaling,
    "permutation": Permutation,
}
Axis = str | tuple[str, int] | View


def manual_sites(model: nn.Module, sites: Mapping[str, tuple[str, Sequence[Axis], Sequence[Axis]]]) -> tuple[Site, ...]:
    """One site per entry ``name: (group, producers, consumers)``, see :meth:`Symmetry.manual`."""
    require_movable(model)
    return tuple(_site(model, name, *spec) for name, spec in sites.items())


def _site(model: nn.Module, name: str, group: str, producers: Sequence[Axis], consumers: Sequence[Axis]) -> Site:
    if group not in GROUPS:
        raise UserError(f"site '{name}': unknown group '{group}': choose one of {', '.join(GROUPS)}")
    views = [
        [_view(model, name, axis, default) for axis in given] for given, default in ((producers, 0), (consumers, 1))
    ]
    fronts = {view.front for side in views for view in side}
    if not views[0] or not views[1]:
        raise UserError(f"site '{name}' needs at least one producer and one consumer")
    if len(fronts) > 1:
        sizes = ", ".join(f"'{view.name}' {view.front[-1]}" for side in views for view in side)
        raise UserError(f"site '{name}': the parameters differ in their number of units ({sizes}): name the axes")
    (*blocks, k) = fronts.pop()
    return Site(name, GROUPS[group](k, tuple(blocks)), tuple(views[0]), tuple(views[1]))


def _view(model: nn.Module, site: str, axis: Axis, default: int) -> View:
    """A view of a parameter along the axis given with its name, or the one that is usual for its role."""
    if isinstance(axis, View):
        name, along = axis.name, None
    else:
        name, along = (axis, None) if isinstance(axis, str) else axis
    parameters = dict(model.named_parameters())
    if name not in parameters:
        raise UserError(f"site '{site}': the model has no parameter '{name}': see model.named_parameters()")
    shape = parameters[name].shape
    if isinstance(axis, View):
        return axis
    along = min(default, len(shape) - 1) if along is None else along
    if not -len(shape) <= along < len(shape):
        raise UserError(f"site '{site}': '{name}' of shape {tuple(shape)} has no axis {along}")
    return View.along(name, shape, along)
