"""The updates that stand beside learned teleports, by name.

polyak, adam, muon, curvature    learned step lengths, see :class:`Layerwise`
coordinatewise             see :class:`Coordinatewise`; its hidden size is its own
gd, plain_adam             plain optimizers with the step size ``lr``, nothing learned
decaying_adam              the same with beta2 0.95; its step size decays to zero over the horizon
"""

from meta_teleport.errors import UserError
from meta_teleport.learned.coordinatewise import Coordinatewise
from meta_teleport.learned.layerwise import DIRECTIONS, Layerwise
from meta_teleport.rules.classical import Adam, GradientDescent
from meta_teleport.rules.rule import Rule

UPDATES = (*DIRECTIONS, "coordinatewise", "gd", "plain_adam", "decaying_adam")
DECAYING_BETA2 = 0.95


def update_named(name: str, hidden_size: int, horizon: int, start: float, lr: float) -> Rule:
    """The update of that name.

    Raises ``UserError`` for a name that is none of UPDATES.
    """
    if name not in UPDATES:
        raise UserError(f"unknown update '{name}': choose one of {', '.join(UPDATES)}")
    if name == "gd":
        return GradientDescent(lr)
    if name == "plain_adam":
        return Adam(lr)
    if name == "decaying_adam":
        return Adam(lr, beta2=DECAYING_BETA2, horizon=horizon)
    if name == "coordinatewise":
        return Coordinatewise(horizon=horizon, start=start)
    return Layerwise(name, hidden_size, horizon, start)  # type: ignore[arg-type]
