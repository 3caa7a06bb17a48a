"""What a saved state must be to go on with: that of the same rule, tasks and seed, tensor by tensor."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.registry import class_path
from meta_teleport.rules.rule import Rule
from meta_teleport.specs import INIT_ARGS, Described, spec_of
from meta_teleport.tasks.family import TaskFamily

IDENTITY = "of"
PLACES = ("folder", "download")
"""Arguments of a family that say where its data lie, not what they are."""
MOMENTS = {"exp_avg": True, "exp_avg_sq": True, "step": False}
"""What Adam keeps of each parameter, and whether it has the shape of it."""

STEP = torch.zeros((), dtype=torch.float32)
"""What Adam's count of steps is like."""


def identity(rule: Rule, family: TaskFamily, seed: int) -> dict[str, Any]:
    """What a state is of, as plain data: states of version 0.1 do not say."""
    families = [_described(member) for member in family.members]
    return {"rule": _described(rule), "families": families, "seed": seed}


def require_own(saved: Mapping[str, Tensor], meta: Mapping[str, Any], own: Mapping[str, Tensor], numbers: Any) -> None:
    """Raises ``UserError`` unless a ``saved`` state with what stands beside it, ``meta``, is one of the trainer whose
    state is ``own`` and ``numbers``."""
    found = meta.get(IDENTITY, numbers[IDENTITY])
    for name, value in numbers[IDENTITY].items():
        if not isinstance(found, dict) or not _agree(found.get(name), value):
            raise _other(f"its {name} differs from the run's")
    for name, value in numbers.items():
        optional = name == "decay_steps" and name not in meta  # version 0.1 has none
        if name != IDENTITY and not optional and not _is_like(meta.get(name), value):
            raise _other(f"its {name} is no number")
    expected = {**own, **_moments(saved, own)}
    for name, tensor in expected.items():
        like = saved.get(name)
        dtypes = {tensor.dtype, torch.bool} if tensor.dtype == torch.long else {tensor.dtype}  # see TaskPool.restore
        if like is None or like.shape != tensor.shape or like.dtype not in dtypes:
            raise _other(f"its tensor '{name}' is missing or of another shape or dtype")
    if more := saved.keys() - expected.keys():
        raise _other(f"it holds a tensor '{min(more)}'")


def _moments(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors like those that Adam keeps of the parameters of which the state has any."""
    expected: dict[str, Tensor] = {}
    for name, tensor in own.items():
        kept = {f"adam.{name.removeprefix('phi.')}.{key}": key for key in MOMENTS} if name.startswith("phi.") else {}
        if kept.keys() & saved.keys():
            expected |= {full: tensor if MOMENTS[key] else STEP for full, key in kept.items()}
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
