"""What must hold before an optimizer may have teleports between its steps, or it is refused."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from meta_teleport.errors import UserError
from meta_teleport.optimizers.delegate import Delegate
from meta_teleport.optimizers.transport import laws_of
from meta_teleport.symmetry.requirements import described
from meta_teleport.teleportation.gauges import GAUGES, Gauge
from meta_teleport.teleportation.strategies import CHOICES, Choice, ProposesElements

STATES = ("keep", "reset", "transport")
NEED_NO_LOSS = (*GAUGES, "random")


def require_state(state: str, optimizer: Optimizer) -> None:
    """Raises ``UserError`` for an unknown word, and for *transport* of a state that has no law."""
    if state not in STATES:
        raise UserError(f"unknown state '{state}': choose one of {', '.join(STATES)}")
    if state == "transport":
        laws_of(optimizer)


def require_base(base: Any, state: str) -> None:
    """Raises ``UserError`` for what is no optimizer, or teleports already, and where :func:`require_state` does."""
    if not isinstance(base, Optimizer):
        raise UserError(f"the base optimizer is {described(base)}: give an instance of torch.optim.Optimizer")
    if isinstance(base, Delegate):
        raise UserError("the base optimizer teleports already: wrap the one inside it (.base)")
    require_state(state, base)


def require_loss(objective: Choice | ProposesElements, loss: Any, batches: Any) -> None:
    """Raises ``UserError`` for a loss or batches that cannot be called, and for an objective that lacks them."""
    for name, function in (("loss", loss), ("batches", batches)):
        if function is not None and not callable(function):
            raise UserError(f"{name} is a {type(function).__name__}: give a function, loss(model, batch) and batches()")
    named = isinstance(objective, str) and objective in NEED_NO_LOSS
    unknown = isinstance(objective, str) and objective not in CHOICES  # which is what the user will be told
    needs_loss = not named and not unknown and not isinstance(objective, Gauge | ProposesElements)
    if needs_loss and (loss is None or batches is None):
        raise UserError(
            f"objective {objective!r} needs a loss on a batch: give loss=... (called with the model and a batch) and "
            f"batches=... (called without arguments, gives a batch), or choose a gauge: {', '.join(GAUGES)}"
        )


def next_batch(batches: Callable[[], Any]) -> Any:
    """The batch that ``batches()`` gives. Raises ``UserError`` where an iterator behind it has come to its end."""
    try:
        return batches()
    except StopIteration:
        raise UserError(
            "batches() has no batch left: let it go on for ever, as itertools.cycle(loader).__next__ does"
        ) from None


def names_of(model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> dict[Tensor, str]:
    """The names of the model's parameters. Raises ``UserError`` if a group holds a tensor that is not among them."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    for p in (p for group in groups for p in group["params"]):
        if (p[1] if isinstance(p, tuple) else p) not in names:
            raise UserError(
                "the optimizer holds a tensor that is not a parameter of the model: make it from "
                "model.parameters(), of the same model object"
            )
    return names
