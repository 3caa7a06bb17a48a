"""Several families as one: networks of other sizes, problems of other kinds.

A batch has one shape, so a mixture is trained member by member: see :class:`meta_teleport.meta.trainer.Trainer`.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from meta_teleport.errors import UserError
from meta_teleport.registry import construct
from meta_teleport.specs import spec_of
from meta_teleport.tasks.family import Split, TaskFamily


class Mixture(TaskFamily):
    """A family whose members are families.

    Args:
        families: The members, each ``{"class_path": ..., "init_args": {...}}`` as in a config file (class path or, for
            the families of this package, class name), or from Python an instance. They are trained on in
            this order, one meta-step each.

    Raises ``UserError`` for no member, and for a member that is no family.
    """

    def __init__(self, families: Sequence[Any]) -> None:
        built = [spec if isinstance(spec, TaskFamily) else construct(spec, TaskFamily) for spec in families]
        if not built:
            raise UserError("a Mixture of no families has no tasks: give families, a list of class_path and init_args")
        self._members = tuple(member for family in built for member in family.members)
        specs = [spec_of(family) for family in built]
        self.init_args = {"families": specs} if all(specs) else None

    @property
    def members(self) -> tuple[TaskFamily, ...]:
        """The families it is made of; the members of a member count one by one."""
        return self._members

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        split: Split = "train",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> NoReturn:
        """Raises ``UserError``: a batch has one shape, so tasks are drawn from one of the ``members``."""
        names = ", ".join(type(member).__name__ for member in self.members)
        raise UserError(f"a Mixture ({names}) has no batch of one shape: draw from one of its members (--task ...)")
