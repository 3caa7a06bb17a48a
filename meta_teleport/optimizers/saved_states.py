"""What an optimizer has beyond torch's, in its state dict: where it lies, and how older versions wrote it.

It lies in the first parameter group, as ``torch.distributed.checkpoint`` drops what lies beside states and groups. It
compares a state dict with that of a new optimizer entry by entry, tensor by tensor, so the entries must be the same
however long training has gone on: one text (JSON) of all that is no tensor, and the tensors by number.
"""

import json
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from meta_teleport.safeguards.habit import Habit

State = dict[str, Any]


def embed(state_dict: State, name: str, own: State) -> State:
    """``state_dict`` with ``own``, of numbers, strings and tensors, in its first parameter group; beside all else where
    a base optimizer has a format of its own, without groups."""
    if "param_groups" not in state_dict:
        return {**state_dict, name: own}
    tensors: list[Tensor] = []

    def number(tensor: Any) -> State:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} holds a {type(tensor).__name__}, which is neither number, text nor tensor")
        tensors.append(tensor)
        return {"tensor": len(tensors) - 1}

    text = json.dumps(own, default=number)
    entry = {"text": text, "tensors": {str(i): tensor for i, tensor in enumerate(tensors)}}
    first, *others = state_dict["param_groups"]
    return {**state_dict, "param_groups": [{**first, name: entry}, *others]}


def extract(state_dict: State, name: str) -> tuple[State, State | None]:
    """A state dict without what :func:`embed` put there, and this; None if there is none. Version 0.1 had it beside the
    groups."""
    own, rest = state_dict.get(name), {key: value for key, value in state_dict.items() if key != name}
    groups = rest.get("param_groups", [])
    for entry in (group[name] for group in groups if group.get(name)):
        own = _joined(entry["text"], entry["tensors"])
    if groups:
        rest.setdefault("state", {})  # which a flattened state dict forgets where it is empty
        rest["param_groups"] = [{key: value for key, value in group.items() if key != name} for group in groups]
    return rest, own


def _joined(text: str, tensors: dict[str, Tensor]) -> State:
    found: State = json.loads(text, object_hook=lambda d: tensors[str(d["tensor"])] if "tensor" in d else d)
    return found


def only_fills_states(optimizer: Optimizer, name: str) -> bool:
    """Whether this step cannot move a weight, as lr and gradients are zero: ``torch.distributed.checkpoint`` takes such
    a step so that there are states, and entries of groups, to look at. It finds ``name`` among these then."""
    if any(float(group.get("lr", 1)) for group in optimizer.param_groups):
        return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients or any(bool(g.any()) for g in gradients):
        return False
    optimizer.param_groups[0].setdefault(name, None)
    return True


def teleportation_of(state: dict[str, Any]) -> dict[str, Any]:
    """What a :class:`TeleportedOptimizer` saves beside the state of its base optimizer.

    In version 0.1 every reader of the losses kept its own, and neither imbalance nor harm was watched.
    """
    state = {"balance": {}, "habit": Habit().state_dict(), **state}
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
    return {**state, "progress": progress, "rule": sight["rule"]}
