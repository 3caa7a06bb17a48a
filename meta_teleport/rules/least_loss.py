"""Losses whose least value is taken to be zero: their logarithms are read, or Polyak's step length is."""

from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.rules.rule import Rule
from meta_teleport.teleportation.acceptance import rounding


def require_not_negative(losses: Tensor, scale: Tensor, reader: str, remedy: str) -> None:
    """Raises ``UserError`` if one of ``losses`` ``(..., tasks)`` is further below zero than rounding explains for
    losses as large as ``scale`` ``(tasks,)``. ``reader`` says what takes no such losses, with its verb, ``remedy`` what
    helps."""
    negative = losses.detach() < -rounding(losses.dtype) * scale.abs()
    if bool(negative.any()):
        value = float(losses.detach()[negative][0])
        raise UserError(f"{reader} losses that are not negative, and one is {value:.3g}: {remedy}")


def require_readable(rule: Rule, losses: Tensor, scale: Tensor) -> None:
    """Raises ``UserError`` for losses that ``rule`` cannot read."""
    if rule.nonnegative_losses:
        remedy = "add a constant to the loss, or choose a rule that does not read it, such as Coordinatewise"
        require_not_negative(losses, scale, f"{type(rule).__name__} takes", remedy)
