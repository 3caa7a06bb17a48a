"""Whether what a rule gives keeps its contract; what does not is named, as rules are written by users too."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.rules.rule import Proposal, Rule
from meta_teleport.symmetry.symmetry import Symmetry


def require_proposal(rule: Rule, proposal: Any, params: Params, symmetry: Symmetry) -> None:
    """Raises ``UserError`` if there is no update for a parameter ``(tasks, *shape)``, one of another shape, or
    coordinates that are not those of the sites."""
    name = type(rule).__name__
    if not isinstance(proposal, Proposal):
        raise UserError(f"{name} gives a {type(proposal).__name__}: let forward return (Proposal(...), state)")
    for key, p in params.items():
        if key not in proposal.update:
            raise UserError(f"{name} proposes no update of '{key}': give one for every parameter, zeros if it rests")
        if (found := proposal.update[key].shape) != p.shape:
            raise UserError(
                f"{name} proposes an update of shape {tuple(found)} for '{key}' of shape {tuple(p.shape)}: give it "
                "that shape, tasks first"
            )
    if not proposal.algebra:
        return
    tasks, sites = len(next(iter(params.values()))), symmetry.sites
    if len(proposal.algebra) != len(sites):
        raise UserError(f"{name} proposes {len(proposal.algebra)} elements for {len(sites)} sites: give one per site")
    for site, t in zip(sites, proposal.algebra, strict=True):
        if t.shape != (wanted := (tasks, *site.group.algebra_shape)):
            raise UserError(
                f"{name} proposes coordinates of shape {tuple(t.shape)} at site '{site.name}', which takes {wanted}: "
                "give them that shape, tasks first"
            )


def require_state(rule: Rule, state: Any, tasks: int) -> None:
    """Raises ``UserError`` for a state that holds anything but tensors ``(tasks, ...)``."""
    for leaf in tree_leaves(state):
        if not isinstance(leaf, Tensor) or leaf.shape[:1] != (tasks,):
            what = f"a tensor of shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
            raise UserError(
                f"the state of {type(rule).__name__} holds {what}: hold tensors alone, with the {tasks} tasks as first "
                "dimension"
            )
