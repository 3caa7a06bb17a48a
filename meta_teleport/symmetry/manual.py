"""Sites named by hand, for models that cannot be traced."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.symmetry.groups import GROUPS
from meta_teleport.symmetry.requirements import is_movable, require_movable
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.views import View

FORM = "(group, [producers], [consumers])"
Axis = str | tuple[str, int] | View


def manual_sites(model: nn.Module, sites: Mapping[str, tuple[str, Sequence[Axis], Sequence[Axis]]]) -> tuple[Site, ...]:
    """One site per entry ``name: (group, producers, consumers)``, see :meth:`Symmetry.manual`."""
    require_movable(model)
    if not isinstance(sites, Mapping):
        raise UserError(f"sites are a {type(sites).__name__}: give a dict, {{name: {FORM}}}")
    return tuple(_site(model, name, *_parsed(name, spec)) for name, spec in sites.items())


def _parsed(name: str, spec: Any) -> tuple[str, Sequence[Axis], Sequence[Axis]]:
    """The three parts of a site, each of its kind."""
    if not isinstance(spec, (tuple, list)) or len(spec) != 3:
        raise UserError(f"site '{name}' is {spec!r}: give {FORM}")
    group, producers, consumers = spec
    if not isinstance(group, str) or group not in GROUPS:
        raise UserError(f"site '{name}': unknown group '{group}': choose one of {', '.join(GROUPS)}")
    for role, side in (("producers", producers), ("consumers", consumers)):
        if _is_axis(side) or not isinstance(side, (tuple, list)):
            raise UserError(f"site '{name}': the {role} are {side!r}: give a list of them, [{side!r}]")
        for axis in side:
            if not _is_axis(axis):
                raise UserError(
                    f"site '{name}': {axis!r} is none of the {role}: give the name of a parameter, (name, axis), or a "
                    "View"
                )
    return group, producers, consumers


def _is_axis(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
    return isinstance(value, (str, View))


def _site(model: nn.Module, name: str, group: str, producers: Sequence[Axis], consumers: Sequence[Axis]) -> Site:
    views = [
        [_view(_tensors(model, group), name, axis, default) for axis in given]
        for given, default in ((producers, 0), (consumers, 1))
    ]
    fronts = {view.front for side in views for view in side}
    if not views[0] or not views[1]:
        raise UserError(f"site '{name}' needs at least one producer and one consumer")
    if len(fronts) > 1:
        sizes = ", ".join(f"'{view.name}' {view.front[-1]}" for side in views for view in side)
        raise UserError(f"site '{name}': the parameters differ in their number of units ({sizes}): name the axes")
    (*blocks, k) = fronts.pop()
    return Site(name, GROUPS[group](k, tuple(blocks)), tuple(views[0]), tuple(views[1]))


def _tensors(model: nn.Module, group: str) -> dict[str, Tensor]:
    """What a group may move: parameters, and for permutations the buffers too."""
    movable: dict[str, Tensor] = {} if GROUPS[group].has_algebra else dict(model.named_buffers())
    return {**movable, **dict(model.named_parameters())}


def _view(parameters: Mapping[str, Tensor], site: str, axis: Axis, default: int) -> View:
    """A view of a parameter along the axis given with its name, or the one that is usual for its role."""
    if isinstance(axis, View):
        name, along = axis.name, None
    else:
        name, along = (axis, None) if isinstance(axis, str) else axis
    if name not in parameters:
        raise UserError(f"site '{site}': the model has no parameter '{name}': see model.named_parameters()")
    if not is_movable(parameters[name]):
        kind = str(parameters[name].dtype).removeprefix("torch.")
        raise UserError(f"site '{site}' moves '{name}', which is {kind}: only float32 and float64 can move")
    shape = tuple(parameters[name].shape)
    if isinstance(axis, View):
        _require_fit(site, axis, shape)
        return axis
    along = min(default, len(shape) - 1) if along is None else along
    if not -len(shape) <= along < len(shape):
        raise UserError(f"site '{site}': '{name}' of shape {shape} has no axis {along}")
    return View.along(name, shape, along)


def _require_fit(site: str, view: View, shape: tuple[int, ...]) -> None:
    """Refuses a view that does not show a parameter of this shape: its factors must multiply to the axes, in order."""
    what = f"site '{site}': the View of '{view.name}'"
    if view.ndim != len(shape):
        raise UserError(f"{what} has ndim {view.ndim}, and the parameter has shape {shape}: give ndim {len(shape)}")
    shown = shape
    if view.part is not None:
        axis, start, length = view.part
        if not (0 <= axis < len(shape) and 0 <= start < start + length <= shape[axis]):
            raise UserError(
                f"{what} has part {view.part}, and the parameter has shape {shape}: give (axis, start, length) of a "
                "slice of it"
            )
        shown = (*shape[:axis], length, *shape[axis + 1 :])
    if not view.fits(shape):
        raise UserError(
            f"{what} has shape {view.shape}, and what it shows has shape {shown}: give the same, with an axis cut into "
            "factors where units or heads lie within it"
        )
    places = (*view.blocks, *view.units)
    if not view.units or len(set(places)) < len(places) or not set(places) <= set(range(len(view.shape))):
        raise UserError(
            f"{what} has units {view.units} and blocks {view.blocks}: give different positions in its shape "
            f"{view.shape}, at least one of units"
        )
