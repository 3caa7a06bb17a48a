"""A search for one teleport after the other, none of which may lead too far from where training began."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.imbalance import Balance
from meta_teleport.teleportation.ranks import Ranks
from meta_teleport.teleportation.strategies import Choice, has_length
from meta_teleport.teleportation.teleport import Teleport, teleport

SHORTER = 2
"""How often a search that went too far is tried again with half its length."""


class Search:
    """:func:`meta_teleport.teleport` of ``model`` by ``choice``, together with all ``ranks``; what leads beyond the
    bounds of ``balance`` is tried again with half the ``size``, ``SHORTER`` times, and is not accepted then.
    ``settings``: the other arguments of the function."""

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
        self._size, self._tries = size, 1 + SHORTER if has_length(choice) else 1
        self._balance, self._ranks = balance, ranks

    def __call__(self, batch: Any, length: float = 1.0) -> Teleport:
        """The end of a search on ``batch``, ``length`` times as long as was asked for at first."""
        for halvings in range(self._tries):
            with torch.enable_grad():
                size = self._size * length * 0.5**halvings
                found = self._teleport(batch=batch, size=size, process_group=self._ranks.group)
            uneven = "" if found.reason else self._balance.fault(found.params)
            if not uneven:
                return found
        return replace(found, accepted=False, reason=uneven)
