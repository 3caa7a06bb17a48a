"""The paper's three meta-optimizers (Zhao et al. 2024, section 5 and Algorithm 1).

All read the whole flattened gradient, so they fit one network shape.

    LSTM(update)        f_t = head(m1(grad_t))
    LSTM(update, tele)  f_t = head(m1(grad_t)),  T_t = head(m2(grad_t)) per adjacent pair of layers
    LSTM(lr, tele)      f_t = -lr_t grad_t,      lr_(t+1), T_t = heads(m2(grad_t))

Published: hidden size 300 (20 for LSTM(lr, tele)), raw features, elements of Frobenius norm exactly 0.01, and none of
the options below. The defaults are choices that hold up past the trained horizon:

* ``features="normalized"``: the gradient is divided by its norm, and the logarithms of that norm and of the loss are
  two more inputs. Raw gradients of the paper's problems span six orders of magnitude and saturate the gates.
* ``gradient_term``: f_t gains ``-exp(a_t) (L / |grad|^2) grad_t``, a learned multiple a_t of Polyak's step length, in
  LSTM(lr, tele) in place of the clamped learning rate.
* ``safeguard``: rollback to the best point, see :mod:`meta_teleport.rules.rollback`.
"""

from abc import abstractmethod
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.learned.cells import CellState, StackedLSTM
from meta_teleport.learned.heads import ClampedHead, ElementHead, ElementSize, PolyakHead, UpdateHead
from meta_teleport.learned.learned_rule import LearnedRule
from meta_teleport.params import Params, flatten, per_task
from meta_teleport.rules.rollback import Anchor, at_anchor, from_anchor, move_anchor, no_anchor
from meta_teleport.rules.rule import Observation, Proposal, Shapes, SiteShape
from meta_teleport.symmetry.symmetry import Symmetry

Features = Literal["raw", "normalized"]

LOG_SCALE = 0.1
LR_FIRST = 1e-4


class LSTMState(NamedTuple):
    """Recurrent states of m1 and of every m2, the learning rate of the coming step, and the anchor of the
    safeguard (an empty tuple without one)."""

    update: tuple[CellState, ...]
    element: tuple[tuple[CellState, ...], ...]
    lr: Tensor
    anchor: Anchor | tuple[()]


class LSTMRule(LearnedRule):
    """What the three rules share: reading the gradient, element heads, safeguard.

    Args:
        shapes: Parameter shapes and sites of the network.
        hidden_size: Units of every LSTM cell.
        layers: Stacked LSTM cells.
        element_size: fixed (every element has Frobenius norm ``size``) or learned (any norm below ``size``).
        size: Norm of the algebra coordinates, or its upper bound.
        features: raw (published) or normalized.
        gradient_term: Add a learned multiple of Polyak's gradient step.
        safeguard: Roll back to the best point when a step has raised the loss.
    """

    shapes: Shapes

    def __init__(
        self,
        shapes: Shapes,
        hidden_size: int = 64,
        layers: int = 2,
        element_size: ElementSize = "learned",
        size: float = 1.0,
        features: Features = "normalized",
        gradient_term: bool = True,
        safeguard: bool = True,
    ) -> None:
        super().__init__()
        if hidden_size < 1 or layers < 1:
            raise UserError(f"hidden_size {hidden_size} and layers {layers} must both be at least 1")
        for name, value, choices in (
            ("element_size", element_size, ("fixed", "learned")),
            ("features", features, ("raw", "normalized")),
        ):
            if value not in choices:
                raise UserError(f"unknown {name} '{value}': choose one of {', '.join(choices)}")
        self.shapes, self.features, self.safeguard = shapes, features, safeguard
        self.hidden_size, self.layers, self.gradient_term = hidden_size, layers, gradient_term
        self.element_size, self.size = element_size, size
        self.nonnegative_losses = features == "normalized" or gradient_term

    def forward(self, observation: Observation, state: LSTMState) -> tuple[Proposal, LSTMState]:
        if not isinstance(state.anchor, Anchor):
            return self.propose(observation, state)
        anchor = move_anchor(observation, state.anchor)
        proposal, state = self.propose(at_anchor(observation, anchor), state)
        return from_anchor(proposal, observation, anchor), state._replace(anchor=anchor)

    def init(self, params: Params, symmetry: Symmetry) -> LSTMState:
        first = next(iter(params.values()))
        return LSTMState((), (), first.new_full(first.shape[:1], LR_FIRST), no_anchor(params) if self.safeguard else ())

    @abstractmethod
    def propose(self, observation: Observation, state: LSTMState) -> tuple[Proposal, LSTMState]:
        """The step from the observed point, before any safeguard."""

    def read(self, observation: Observation, names: tuple[str, ...]) -> Tensor:
        """The gradients of ``names`` as the input row of an LSTM, ``(tasks, features)``."""
        rows = flatten({name: observation.gradients[name] for name in names})
        if self.features == "raw":
            return rows
        size = (rows.square().sum(1, keepdim=True) + torch.finfo(rows.dtype).tiny).sqrt()
        logs = torch.cat([size, observation.loss.unsqueeze(1).clamp(min=torch.finfo(rows.dtype).tiny)], 1).log()
        return torch.cat([rows / size * rows.shape[1] ** 0.5, LOG_SCALE * logs], 1)

    def lstm(self, names: tuple[str, ...]) -> StackedLSTM:
        """An LSTM for what :meth:`read` gives of the parameters ``names``."""
        inputs = sum(prod(self.shapes.params[name]) for name in names)
        return StackedLSTM(inputs + 2 * (self.features == "normalized"), self.hidden_size, self.layers)

    def element_head(self, site: SiteShape) -> ElementHead:
        """A head for the algebra coordinates of one site."""
        return ElementHead(self.hidden_size, site.algebra, self.element_size, self.size)


class LSTMUpdate(LSTMRule):
    """LSTM(update): the update from one LSTM, no teleport. Arguments as for :class:`LSTMRule`."""

    def __init__(
        self,
        shapes: Shapes,
        hidden_size: int = 64,
        layers: int = 2,
        features: Features = "normalized",
        gradient_term: bool = True,
        safeguard: bool = True,
    ) -> None:
        super().__init__(
            shapes, hidden_size, layers, features=features, gradient_term=gradient_term, safeguard=safeguard
        )
        self.update = self.lstm(tuple(shapes.params))
        self.update_head = UpdateHead(hidden_size, shapes, gradient_term)

    def init(self, params: Params, symmetry: Symmetry) -> LSTMState:
        return super().init(params, symmetry)._replace(update=self.update.init(next(iter(params.values()))))

    def propose(self, observation: Observation, state: LSTMState) -> tuple[Proposal, LSTMState]:
        hidden, cells = self.update(self.read(observation, tuple(self.shapes.params)), state.update)
        return Proposal(self.update_head(hidden, observation)), state._replace(update=cells)


class LSTMUpdateTele(LSTMRule):
    """LSTM(update, tele): update and group elements. Arguments as for :class:`LSTMRule`, and

    Args:
        networks: two (published: m1 for the update, one m2 per site, each reading the gradients of the parameters
            that its site moves) or one (a single LSTM with a head for each).
    """

    element_modules = ("element", "element_heads")

    def __init__(
        self,
        shapes: Shapes,
        hidden_size: int = 64,
        layers: int = 2,
        networks: Literal["two", "one"] = "two",
        element_size: ElementSize = "learned",
        size: float = 1.0,
        features: Features = "normalized",
        gradient_term: bool = True,
        safeguard: bool = True,
    ) -> None:
        super().__init__(shapes, hidden_size, layers, element_size, size, features, gradient_term, safeguard)
        if networks not in ("two", "one"):
            raise UserError(f"unknown networks '{networks}': choose two or one")
        self.update = self.lstm(tuple(shapes.params))
        self.update_head = UpdateHead(hidden_size, shapes, gradient_term)
        inner = shapes.sites if networks == "two" else ()
        self.element = nn.ModuleList(self.lstm(site.parameters) for site in inner)
        self.element_heads = nn.ModuleList(self.element_head(site) for site in shapes.sites)

    def init(self, params: Params, symmetry: Symmetry) -> LSTMState:
        like = next(iter(params.values()))
        element = _initial(self.element, like)
        return super().init(params, symmetry)._replace(update=self.update.init(like), element=element)

    def propose(self, observation: Observation, state: LSTMState) -> tuple[Proposal, LSTMState]:
        hidden, cells = self.update(self.read(observation, tuple(self.shapes.params)), state.update)
        outputs, element = _run(self, self.element, observation, state)
        outputs = outputs or [hidden] * len(self.element_heads)
        algebra = tuple(head(h) for head, h in zip(self.element_heads, outputs, strict=True))
        return Proposal(self.update_head(hidden, observation), algebra), state._replace(update=cells, element=element)


class LSTMLrTele(LSTMRule):
    """LSTM(lr, tele): a learning rate and group elements; the update is a gradient step.

    As published the learning rate is a linear output clamped to [1e-7, 5e-3], averaged over the sites, used at the
    next step (the first step takes 1e-4). Arguments as for :class:`LSTMRule`; the
    published hidden size is 20.
    """

    element_modules = ("element", "element_heads", "element_lr")

    def __init__(
        self,
        shapes: Shapes,
        hidden_size: int = 64,
        layers: int = 2,
        element_size: ElementSize = "learned",
        size: float = 1.0,
        features: Features = "normalized",
        gradient_term: bool = True,
        safeguard: bool = True,
    ) -> None:
        super().__init__(shapes, hidden_size, layers, element_size, size, features, gradient_term, safeguard)
        if not shapes.sites:
            raise UserError("LSTM(lr, tele) reads one pair of layers per site and the network has no site: add one")
        self.element = nn.ModuleList(self.lstm(site.parameters) for site in shapes.sites)
        self.element_heads = nn.ModuleList(self.element_head(site) for site in shapes.sites)
        head = PolyakHead if gradient_term else ClampedHead
        self.element_lr = nn.ModuleList(head(hidden_size) for _ in shapes.sites)

    def init(self, params: Params, symmetry: Symmetry) -> LSTMState:
        like = next(iter(params.values()))
        return super().init(params, symmetry)._replace(element=_initial(self.element, like))

    def propose(self, observation: Observation, state: LSTMState) -> tuple[Proposal, LSTMState]:
        outputs, element = _run(self, self.element, observation, state)
        algebra = tuple(head(h) for head, h in zip(self.element_heads, outputs, strict=True))
        steps = [head(h, observation) for head, h in zip(self.element_lr, outputs, strict=True)]
        coming = torch.stack(steps).mean(0)
        lr = coming if self.gradient_term else state.lr
        update = {name: -per_task(lr, g) * g for name, g in observation.gradients.items()}
        return Proposal(update, algebra), state._replace(element=element, lr=coming)


def _initial(lstms: Any, like: Tensor) -> tuple[tuple[CellState, ...], ...]:
    """The zero states of every m2."""
    return tuple(lstm.init(like) for lstm in lstms)


def _run(rule: LSTMRule, lstms: Any, observation: Observation, state: LSTMState) -> tuple[list[Tensor], Any]:
    """Every m2 on the gradients of its own site: outputs and next states."""
    outputs, states = [], []
    for lstm, cells, site in zip(lstms, state.element, rule.shapes.sites, strict=False):
        hidden, new = lstm(rule.read(observation, site.parameters), cells)
        outputs.append(hidden)
        states.append(new)
    return outputs, tuple(states)
