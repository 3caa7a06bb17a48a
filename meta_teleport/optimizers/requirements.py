"""What must hold before an optimizer may have teleports between its steps, or it is refused."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from meta_teleport.errors import UserError
from meta_teleport.optimizers.delegate import Delegate
from meta_teleport.optimizers.transport import LAWS, laws_of
from meta_teleport.symmetry.requirements import described, require_movable
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.conditions import require_alike, trainable_sites
from meta_teleport.teleportation.gauges import GAUGES, Gauge
from meta_teleport.teleportation.proposer import ProposesElements
from meta_teleport.teleportation.strategies import CHOICES, PROPOSERS, Choice

STATES = ("keep", "reset", "transport")
NEED_NO_LOSS = (*GAUGES, *PROPOSERS, "random")


NEAR = 0.5
"""How near to the weights, in multiples of their norm, a state is taken for weights."""


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
    require_none_kept(base, state)
    require_state(state, base)


def require_none_kept(optimizer: Optimizer, state: str) -> None:
    """Raises ``UserError`` where the optimizer keeps weights in its state (slow weights, means of weights) that would
    stay behind. *reset* begins them anew, but not those of a wrapper, which makes them once."""
    key, wraps = kept_weights(optimizer), len(optimizers_in(optimizer)) > 1
    if key is not None and (wraps or state == "keep"):
        remedy = "give the optimizer inside it" if wraps else "use state='reset', which begins them anew"
        name = type(optimizer).__name__
        raise UserError(f"{name} keeps weights in its state ('{key}'), which do not move with the model: {remedy}")


def optimizers_in(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer, and those that it wraps."""
    inner = [value for value in vars(optimizer).values() if isinstance(value, Optimizer)]
    return [optimizer, *(found for own in inner for found in optimizers_in(own))]


def kept_weights(optimizer: Optimizer) -> str | None:
    """The name of an entry of the state that lies near the weights, by less than ``NEAR`` of their norm, in an
    optimizer without laws; None if there is none."""
    distances: dict[str, list[Tensor]] = {}
    for own in optimizers_in(optimizer):
        if isinstance(own, tuple(LAWS)):
            continue
        for p, state in own.state.items():
            entries = state.items() if isinstance(p, Tensor) and isinstance(state, dict) else ()
            for key, value in entries:
                if isinstance(value, Tensor) and value.shape == p.shape and value.ndim and value.is_floating_point():
                    pair = torch.stack([(value.to(p) - p).detach().square().sum(), p.detach().square().sum()])
                    distances.setdefault(key, []).append(pair)
    for key, pairs in distances.items():
        distance, size = torch.stack(pairs).sum(0)
        if bool(distance < NEAR**2 * size):
            return key
    return None


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


def model_fault(
    model: nn.Module, symmetry: Symmetry, groups: Iterable[Mapping[str, Any]], known: Collection[str]
) -> str:
    """Why the model, which may have changed since its ``known`` parameters were counted, cannot teleport now; empty if
    it can."""
    try:
        require_movable(model)
        trainable_sites(model, symmetry)
        require_alike(model)
        names_of(model, groups)
    except UserError as error:
        return str(error)
    return new_parameter_fault(model, known)


def new_parameter_fault(model: nn.Module, known: Collection[str]) -> str:
    """Names a parameter that is not among the ``known`` ones, as the symmetry may not hold of it; empty if all are."""
    for name, _ in model.named_parameters():
        if name not in known:
            return f"'{name}' is new since the symmetry was found: find that of the model as it is, and begin with that"
    return ""


class Place(NamedTuple):
    """Shape, precision and device of a parameter."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, p: Tensor) -> Self:
        """That of ``p``."""
        return cls(p.shape, p.dtype, p.device)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {tuple(self.shape)} on {self.device}"


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
    for p in held_in(groups):
        if p not in names:
            raise UserError(
                "the optimizer holds a tensor that is not a parameter of the model: make it from "
                "model.parameters(), of the same model object"
            )
    return names


def held_in(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """The parameters of the groups, which may stand there with their names."""
    return [p[1] if isinstance(p, tuple) else p for group in groups for p in group["params"]]
