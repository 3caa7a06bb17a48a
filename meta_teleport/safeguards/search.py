"""A search for one teleport after the other, none of which may do harm that can be foreseen."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from meta_teleport.safeguards.imbalance import Balance
from meta_teleport.safeguards.witness import Witness
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.ranks import Ranks
from meta_teleport.teleportation.strategies import Choice, has_length
from meta_teleport.teleportation.teleport import Teleport, teleport

SHORTER = 2
"""How often a search that went too far is tried again with half its length."""


class Search:
    """:func:`meta_teleport.teleport` of ``model`` by ``choice``, together with all ``ranks``; what leads beyond the
    bounds of ``balance`` is tried again with half the ``size``, ``SHORTER`` times, and is not accepted then. Without a
    loss the outputs are looked at now and then (:class:`Witness`). ``settings``: the other arguments of the function.
    """

    def __init__(
        self,
        model: nn.Module,
        symmetry: Symmetry,
        choice: Choice,
        size: float,
        balance: Balance,
        ranks: Ranks,
        **settings: Any,
    ) -> None:
        self._teleport = partial(teleport, model, symmetry, choice, **settings)
        self._model, self._size, self._tries = model, size, 1 + SHORTER if has_length(choice) else 1
        self._balance, self._ranks, self._symmetry = balance, ranks, symmetry
        self._witness = Witness(model, settings["tolerance"]) if settings["loss"] is None else None

    def __call__(self, batch: Any, length: float = 1.0) -> Teleport:
        """The end of a search on ``batch``, ``length`` times as long as was asked for at first."""
        for halvings in range(self._tries):
            with torch.enable_grad():
                size = self._size * length * 0.5**halvings
                found = self._teleport(batch=batch, size=size, process_group=self._ranks.group)
            uneven = "" if found.reason else self._balance.fault(found.params)
            if not uneven:
                break
        fault = uneven or found.reason or self._witnessed(found)
        return replace(found, accepted=not fault, reason=fault)

    def _witnessed(self, found: Teleport) -> str:
        if self._witness is None:
            return ""
        before = {n: p.detach()[None] for n, p in self._model.named_parameters() if n in found.params}
        after = {name: p[None] for name, p in found.params.items()}
        return self._witness.fault(self._symmetry, before, after, found.elements, self._ranks.group)
