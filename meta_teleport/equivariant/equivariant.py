"""The equivariant rule: one learned teleport for sites of every size.

Per site it reads invariants and proposes algebra coordinates in a basis made of what surrounds the site,

    T = sum_j a_j B_j,      g = exp(T),

the a_j from a small LSTM that all sites (and all blocks of a site, such as heads) share. The B_j of a GL site:

    activations                            log of h h^T
    incoming, outgoing                     log of V V^T and of U^T U
    incoming_gradient, outgoing_gradient   the same of dL/dV and dL/dU
    symmetric, skew                        the two parts of the moment map U^T dL/dU, divided by |U| |dL/dU|
    identity
    balance                                towards the balanced gauge of an exact site, see :mod:`teleportation.gauges`
    axes                                   a rotation towards coordinate axes of the principal axes of V V^T and U^T U
    steepest                               towards the steepest point of the orbit, see :mod:`steepest`: where rotations
                                           of a plane act on other than matrices

each Gram matrix with mean eigenvalue 1. Permuting the units permutes T, and where no activation lies between V and U
any orthogonal change of basis Q takes T to Q T Q^T, but for axes, which are for updates that work entry by entry, as
Adam's do. Rotations take the skew part of T. For positive scalings the B_j are diagonals, and a small network shared by
all units reads them and the site's hidden state in place of the sum. The head starts at zero, identity elements, unless
a rule begins as a teleport that is known (``init_coefficients``).
"""

from copy import deepcopy
from math import prod
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from meta_teleport.equivariant.alternation import active_basis, alternate
from meta_teleport.equivariant.bases import BASES, EQUIVARIANT, Basis, basis, invariants
from meta_teleport.equivariant.updates import update_named
from meta_teleport.errors import UserError
from meta_teleport.learned.cells import CellState, StackedLSTM
from meta_teleport.learned.learned_rule import LearnedRule
from meta_teleport.learned.task_features import FEATURES, Memory, no_memory, read_task_features
from meta_teleport.params import Params, axpy, lerp, norms, per_task
from meta_teleport.rules.rule import Observation, Proposal, Rule
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Element, Symmetry

UNIT_HIDDEN = 16


class EquivariantState(NamedTuple):
    """Recurrent state ``(tasks, rows, hidden)`` with a row per site and block, memory of the task features, running
    mean of the gradients (empty without averaging, and where the update keeps it), state of the update."""

    cells: tuple[CellState, ...]
    memory: Memory
    average: Params
    update: Any


class Equivariant(LearnedRule):
    """A learned teleport beside an update, learned or not; fits every network.

    Args:
        update: polyak, adam, muon or curvature (learned step lengths along that direction), coordinatewise (a learned
            update of every entry), gd, plain_adam or decaying_adam (nothing learned).
        bases: What T is made of, some of activations, incoming, outgoing, incoming_gradient, outgoing_gradient,
            symmetric, skew, identity, balance, axes and steepest, as in [activations,skew]; all but the last three if
            not given, [] for no teleport.
        hidden_size: Units of the LSTMs.
        horizon: Steps it is trained for.
        size: Bound on |T|, in units of the square root of its number of rows.
        every: Steps between two teleports. Where step lengths decay to a horizon, teleports end there, and a rule made
            for a longer one takes as many, further apart: with more of them gauges drift.
        averaging: Decay of a running mean of the gradients that T is made of, moved along by teleports; 0 for none.
        floor: Least eigenvalue of Gram matrices of weights and gradients, in units of their mean.
        backtracking: Shorten updates that would raise the loss, see :mod:`backtracking` (for full batches).
        start: How long learned steps are before training, see :class:`Layerwise`.
        lr: Step size of the plain updates.
        warmup_teleports: Steps at the start that only teleport.
        teleport_only_steps: Make no update in steps that teleport: elements come after the update of their step, and
            where that goes far, what they are made of is out of date.
        alternating: V and U move in alternation, each in a gauge of its own, see :mod:`alternation`; T is made of the
            weights that the update leads to.
        init_coefficients: By name of a basis, b of the coefficient 0.5 tanh(b) that it starts with; 0 if not named. For
            groups of matrices. With 1 for balance and axes the rule begins as a teleport to the gauge of principal
            axes, with -1 for activations as one that whitens them, with 0.55 for steepest as one to the steepest point.
    """

    element_modules = ("element_lstm", "element_head", "element_unit", "element_unit_head")
    horizon: int

    def __init__(
        self,
        update: str = "polyak",
        bases: list[str] | None = None,
        hidden_size: int = 32,
        horizon: int = 30,
        size: float = 3.0,
        every: int = 1,
        averaging: float = 0.0,
        floor: float = 1e-6,
        backtracking: bool = False,
        start: float = 0.0,
        lr: float = 1e-3,
        warmup_teleports: int = 0,
        teleport_only_steps: bool = False,
        alternating: bool = False,
        init_coefficients: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        bases = list(EQUIVARIANT) if bases is None else bases
        for known, names in ((BASES, bases), (bases, list(init_coefficients or {}))):
            for name in names:
                if name not in known:
                    raise UserError(f"unknown basis '{name}': choose from {', '.join(known) or 'none'}")
        self.bases, self.horizon, self.size, self.every = tuple(bases), horizon, size, every
        self.warmup_teleports, self.teleport_only_steps = warmup_teleports, teleport_only_steps
        self.alternating = alternating
        self.averaging, self.floor, self.backtracking = averaging, floor, backtracking
        self.hidden_size = hidden_size
        self.update = update_named(update, hidden_size, horizon, start, lr)
        self.observes_grams = self.update.observes_grams or "activations" in bases
        self.nonnegative_losses = self.update.nonnegative_losses or bool(bases)
        if bases:
            self.element_lstm = StackedLSTM(FEATURES + invariants(self.bases), hidden_size, layers=1)
            self.element_head = nn.Linear(hidden_size, len(bases))
            self.element_unit = nn.Linear(hidden_size + len(bases), UNIT_HIDDEN)
            self.element_unit_head = nn.Linear(UNIT_HIDDEN, 1)
            for head in (self.element_head, self.element_unit_head):
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
            for name, value in (init_coefficients or {}).items():
                nn.init.constant_(self.element_head.bias[bases.index(name)], value)

    def init(self, params: Params, symmetry: Symmetry) -> EquivariantState:
        first = next(iter(params.values()))
        rows = sum(prod(site.group.blocks) for site in symmetry.sites)
        zero = first.new_zeros(len(first), rows, self.hidden_size)
        update = self.update.init(params, symmetry)
        kept = self.averaging and self.update.running_mean(update, self.averaging) is None
        return EquivariantState(
            (CellState(zero, zero),) if self.bases else (),
            no_memory(first),
            {name: torch.zeros_like(p) for name, p in params.items()} if kept else {},
            update,
        )

    def forward(self, observation: Observation, state: EquivariantState) -> tuple[Proposal, EquivariantState]:
        proposal, update = self._move(observation, state.update)
        average = self._average(observation.gradients, state.average, update)
        state = state._replace(update=update, average=average if state.average else {})
        due, sites = self._due(observation), observation.symmetry.sites
        if not self.bases or not sites or not bool(due.any()):
            return proposal, state
        sizes = norms(observation.gradients)
        of_task, memory = read_task_features(observation, sizes, state.memory, self.horizon, self.time_scale)
        found = self._found(observation._replace(gradients=average), proposal)
        hidden, cells = self._recur(of_task, found, state.cells)
        algebra = self._elements(sites, hidden, found)
        if not bool(due.all()):
            algebra = tuple(torch.where(per_task(due, t), t, 0.0) for t in algebra)
            cells, memory = _where(due, (cells, memory), (state.cells, state.memory))
        return Proposal(proposal.update, algebra), state._replace(cells=cells, memory=memory)

    def transport(self, state: EquivariantState, symmetry: Symmetry, elements: tuple[Element, ...]) -> EquivariantState:
        average = symmetry.transport(state.average, elements) if state.average else {}
        return state._replace(average=average, update=self.update.transport(state.update, symmetry, elements))

    def over(self, update: Rule) -> Self:
        """A copy that takes its updates from another rule: learned teleports over any optimizer. It has no config: it
        cannot be saved."""
        copy = deepcopy(self)
        copy.update, copy.config, copy.init_args, copy.backtracking = update, None, None, update.backtracking
        copy.observes_grams = update.observes_grams or "activations" in self.bases
        copy.nonnegative_losses = update.nonnegative_losses or bool(self.bases)
        return copy

    def _due(self, observation: Observation) -> Tensor:
        """Is it time for a teleport? ``(tasks,)``; always where ``scheduled`` is not set."""
        if not self.scheduled:
            return torch.ones_like(observation.step, dtype=torch.bool)
        if not self.update.decays:
            return observation.step % self.every == 0
        every = max(1, round(self.every * self.time_scale))
        return (observation.step % every == 0) & (observation.step < self.horizon * self.time_scale)

    def _move(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
        """The update of this step, of those parameters that may move in it."""
        proposal, state = self.update(observation, state)
        if (self.warmup_teleports or self.teleport_only_steps) and self.bases:
            moving = (observation.step >= self.warmup_teleports) & ~(self._due(observation) & self.teleport_only_steps)
            moving = moving.to(observation.loss.dtype)
            proposal = Proposal({name: per_task(moving, f) * f for name, f in proposal.update.items()})
        return alternate(proposal, observation) if self.alternating else proposal, state

    def _found(self, observation: Observation, proposal: Proposal) -> list[Basis]:
        """The basis at every site."""
        if self.alternating:
            observation = observation._replace(params=axpy(1.0, proposal.update, observation.params))
        sites = observation.symmetry.sites
        found = [basis(site, i, observation, self.bases, self.floor) for i, site in enumerate(sites)]
        if self.alternating:
            found = [active_basis(b, self.bases, i, observation.step) for i, b in enumerate(found)]
        return found

    def _average(self, gradients: Params, average: Params, update: Any) -> Params:
        """The gradients that T is made of."""
        if average:
            return lerp(average, gradients, 1 - self.averaging)
        return self.update.running_mean(update, self.averaging) or gradients

    def _recur(
        self, of_task: Tensor, found: list[Basis], cells: tuple[CellState, ...]
    ) -> tuple[Tensor, tuple[CellState, ...]]:
        """The hidden states ``(tasks, rows, hidden)`` after one more step of the LSTM on every row."""
        invariants = torch.cat([b.invariants for b in found], 1)
        tasks, rows, _ = invariants.shape
        features = torch.cat([of_task.unsqueeze(1).expand(-1, rows, -1), invariants], -1)
        flat = tuple(CellState(h.flatten(0, 1), c.flatten(0, 1)) for h, c in cells)
        hidden, new = self.element_lstm(features.flatten(0, 1), flat)
        cells = tuple(CellState(h.view(tasks, rows, -1), c.view(tasks, rows, -1)) for h, c in new)
        return hidden.view(tasks, rows, -1), cells

    def _elements(self, sites: tuple[Site, ...], hidden: Tensor, found: list[Basis]) -> tuple[Tensor, ...]:
        """T per site, from the rows of hidden states that belong to it."""
        pieces = hidden.split([b.invariants.shape[1] for b in found], 1)
        algebra = []
        for site, piece, b in zip(sites, pieces, found, strict=True):
            if site.group.is_diagonal:
                of_site = piece.unsqueeze(-2).expand(*b.matrices.shape[:-1], -1)
                inner = torch.tanh(self.element_unit(torch.cat([of_site, b.matrices], -1)))
                t = self.element_unit_head(inner).squeeze(-1)
            else:
                weights = 0.5 * torch.tanh(self.element_head(piece))
                t = torch.einsum("tbj,tbjkl->tbkl", weights, b.matrices)
            bound = self.size * site.group.k**0.5
            square = t.square().flatten(2).sum(-1)
            t = t * per_task(bound / (square + bound**2).sqrt(), t)
            algebra.append(t.reshape(len(t), *site.group.algebra_shape))
        return tuple(algebra)


def _where(mask: Tensor, yes: Any, no: Any) -> Any:
    """Per task the one or the other of two nests of tensors ``(tasks, ...)``."""
    return tree_map(lambda y, n: torch.where(per_task(mask, y), y, n), yes, no)
