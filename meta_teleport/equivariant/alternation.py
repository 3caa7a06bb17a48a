"""Alternation: parameters that move by turns, each in the gauge that suits it, as in alternating least squares.

Layer l of a chain moves at the steps t with ``t + l`` even: what produces the units of the i-th site is layer i, what
only consumes them layer i + 1. What no site moves has its turn at every step. The second derivatives along V are those
of ``U^T U``, along U those of ``V V^T``: no gauge makes both white, so an element is made of one of them, of that by
which the parameters are conditioned whose turn is next.
"""

import torch
from torch import Tensor

from meta_teleport.equivariant.bases import Basis
from meta_teleport.params import per_task
from meta_teleport.rules.rule import Observation, Proposal
from meta_teleport.symmetry.symmetry import Symmetry

BEFORE_CONSUMERS, BEFORE_PRODUCERS = ("activations", "incoming"), ("outgoing",)


def alternate(proposal: Proposal, observation: Observation) -> Proposal:
    """The proposal with the updates of those parameters only whose turn it is."""
    update = dict(proposal.update)
    for name, layer in layers_of(observation.symmetry).items():
        update[name] = torch.where(per_task(_moves(layer, observation.step), update[name]), update[name], 0.0)
    return proposal._replace(update=update)


def layers_of(symmetry: Symmetry) -> dict[str, int]:
    """The layer of each parameter that a site moves."""
    layers: dict[str, int] = {}
    for i, site in enumerate(symmetry.sites):
        readers = set(site.consumer_names)
        layers |= dict.fromkeys(set(site.parameters) - readers, i)
        layers |= dict.fromkeys(readers - layers.keys(), i + 1)
    return layers


def active_basis(found: Basis, names: tuple[str, ...], index: int, step: Tensor) -> Basis:
    """The basis at the site ``index`` after the update of ``step`` ``(tasks,)``, with zeros for those of ``names`` that
    condition the parameters whose turn is not next."""
    producers = _moves(index, step + 1)
    always = torch.ones_like(producers)
    kept = [~producers if n in BEFORE_CONSUMERS else producers if n in BEFORE_PRODUCERS else always for n in names]
    mask = torch.stack(kept, 1).to(found.matrices.dtype)
    diagonal = found.matrices.ndim == 4
    return found._replace(matrices=found.matrices * (mask[:, None, None] if diagonal else mask[:, None, :, None, None]))


def _moves(layer: int, step: Tensor) -> Tensor:
    return (step + layer) % 2 == 0
