"""What a saved state must be to go on with: that of the same rule, tasks and seed, tensor by tensor."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.registry import class_path
from meta_teleport.rules.rule import Rule
from meta_teleport.runs.checkpoint import Header
from meta_teleport.specs import INIT_ARGS, Described, spec_of
from meta_teleport.tasks.family import TaskFamily

IDENTITY = "of"
PLACES = ("folder", "download")
"""Arguments of a family that say where its data lie, not what they are."""
MOMENTS = {"exp_avg": True, "exp_avg_sq": True, "step": False}
"""What Adam keeps of each parameter, and whether it has the shape of it."""


def identity(rule: Rule, family: TaskFamily, seed: int) -> dict[str, Any]:
    """What a state is of, as plain data: states of version 0.1 do not say."""
    families = [_described(member) for member in family.members]
    return {"rule": _described(rule), "families": families, "seed": seed}


def require_own(header: Header, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Raises ``UserError`` unless a saved state, by its ``header``, is one of the trainer whose state is ``tensors``
    and ``numbers``: nothing is read before that."""
    found = header.meta.get(IDENTITY, numbers[IDENTITY])
    for name, own in numbers[IDENTITY].items():
        if not isinstance(found, dict) or not _agree(found.get(name), own):
            raise _other(f"its {name} differs from the run's")
    for name, value in numbers.items():
        if name not in (IDENTITY, "decay_steps") and not _is_like(header.meta.get(name), value):
            raise _other(f"its {name} is no number")
    if not isinstance(header.meta.get("decay_steps", 1), int):
        raise _other("its decay_steps is no number")
    moments = _moments(header, tensors)
    for name, tensor in {**tensors, **moments}.items():
        dtype = header.dtypes.get(name)
        of_alive = dtype == torch.bool and tensor.dtype == torch.long  # as version 0.1 kept it
        if header.shapes.get(name) != tuple(tensor.shape) or not (dtype == tensor.dtype or of_alive):
            raise _other(f"its tensor '{name}' is missing or of another shape or dtype")
    if more := header.shapes.keys() - tensors.keys() - moments.keys():
        raise _other(f"it holds a tensor '{min(more)}'")


def _moments(header: Header, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors like those that Adam keeps of the parameters of which the state has any."""
    expected = {}
    for name, tensor in tensors.items():
        kept = {f"adam.{name.removeprefix('phi.')}.{key}": key for key in MOMENTS} if name.startswith("phi.") else {}
        if kept.keys() & header.shapes.keys():
            expected |= {
                full: tensor if MOMENTS[key] else torch.zeros((), dtype=torch.float32) for full, key in kept.items()
            }
    return expected


def _agree(found: Any, own: Any) -> bool:
    """Whether two values are the same, but for names that only one of them knows: arguments of another version."""
    if isinstance(found, dict) and isinstance(own, dict):
        return all(_agree(found[name], own[name]) for name in found.keys() & own.keys())
    if isinstance(found, list) and isinstance(own, list):
        return len(found) == len(own) and all(map(_agree, found, own))
    return bool(found == own)


def _is_like(value: Any, own: Any) -> bool:
    if isinstance(own, int):
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return isinstance(value, int | float)


def _described(made: Described) -> Any:
    """Class and arguments, or the class alone where they are no plain data."""
    spec = spec_of(made)
    if spec is None:
        return class_path(type(made))
    return {**spec, INIT_ARGS: {name: value for name, value in spec[INIT_ARGS].items() if name not in PLACES}}


def _other(what: str) -> UserError:
    return UserError(
        f"the saved state is of another rule, family, seed or version ({what}): start the run anew in another folder"
    )
