"""States that older versions have saved, as states of this one."""

from typing import Any


def teleportation_of(state: dict[str, Any]) -> dict[str, Any]:
    """What a :class:`TeleportedOptimizer` saves beside the state of its base optimizer.

    In version 0.1 every reader of the losses kept its own, and there was no bound on the imbalance.
    """
    if "progress" in state:
        return state
    records, sight = state["history"]["records"], state["sight"]
    progress = {
        "step": state["taken"],
        "loss": state["loss"],
        "teleports": len(records),
        "spent": sum(record["seconds"] for record in records),
        "elapsed": state["elapsed"],
        "latest": sight["loss"],
        "losses": state["history"]["losses"],
    }
    return {"balance": {}, **state, "progress": progress, "rule": sight["rule"]}
