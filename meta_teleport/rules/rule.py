"""The contract of a rule: the map from what is observed at a step to an update and group elements.

    state = rule.init(params, symmetry)
    proposal, state = rule(observation, state)
    w <- g . (w + f)         with f = proposal.update and g = exp(proposal.algebra), one element per site

Everything a rule reads and writes is batched: tensors ``(tasks, ...)``. A state is a (nested) NamedTuple whose
leaves all have the task dimension in front, so that single tasks can be replaced.

A rule with one meta-parameter, and ten steps of it on four tasks at once::

    class SignDescent(Rule):
        def __init__(self) -> None:
            super().__init__()
            self.log_lr = nn.Parameter(torch.tensor(-5.0))

        def init(self, params: Params, symmetry: Symmetry) -> NoState:
            return NoState()

        def forward(self, observation: Observation, state: NoState) -> tuple[Proposal, NoState]:
            return Proposal({name: -self.log_lr.exp() * g.sign() for name, g in observation.gradients.items()}), state

    rule, tasks = SignDescent(), Regression().sample(4, torch.Generator().manual_seed(0))
    losses, carry = unroll(rule, dict(rule.named_parameters()), tasks, start(rule, tasks), steps=10)  # (10, 4)
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.params import Params, per_task
from meta_teleport.rules.experience import Experience
from meta_teleport.specs import Described
from meta_teleport.symmetry.symmetry import Element, Symmetry


class Observation(NamedTuple):
    """What a rule sees at one step, at the parameters before the step.

    loss and step have shape ``(tasks,)``. ``symmetry`` is the network's. ``hidden`` holds the activations per site as
    columns ``(tasks, k, n)``; it is empty unless the rule sets ``observes_hidden``. ``grams`` holds their
    second moments per site as :meth:`Symmetry.grams` gives them, None where they are not known; it is empty unless the
    rule sets ``observes_grams``, and where none is known.
    """

    params: Params
    gradients: Params
    loss: Tensor
    step: Tensor
    hidden: tuple[Tensor, ...] = ()
    grams: tuple[Tensor | None, ...] = ()
    symmetry: Symmetry = Symmetry(())

    def detached(self) -> "Observation":
        """Gradient, loss and activations as constants, so that no second derivatives are needed: meta-gradients flow
        through the parameters alone."""
        return self._map(torch.Tensor.detach)

    def harmless(self, alive: Tensor) -> "Observation":
        """Ones for the tasks that have failed, on which no rule overflows; ``alive`` is ``(tasks,)``."""
        return self._map(lambda tensor: torch.where(per_task(alive, tensor), tensor, torch.ones_like(tensor)))

    def _map(self, shown: Callable[[Tensor], Tensor]) -> "Observation":
        return self._replace(
            gradients={name: shown(g) for name, g in self.gradients.items()},
            loss=shown(self.loss),
            hidden=tuple(shown(h) for h in self.hidden),
            grams=tuple(None if gram is None else shown(gram) for gram in self.grams),
        )


class Proposal(NamedTuple):
    """The update f, in the names and shapes of the parameters, and the algebra coordinates of g, one tensor per
    site; no coordinates at all mean no teleport."""

    update: Params
    algebra: tuple[Tensor, ...] = ()

    def only(self, alive: Tensor) -> "Proposal":
        """Zeros for the tasks that have failed, which therefore stay where they are; ``alive`` is ``(tasks,)``."""

        def kept(tensor: Tensor) -> Tensor:
            return torch.where(per_task(alive, tensor), tensor, torch.zeros_like(tensor))

        return Proposal({name: kept(f) for name, f in self.update.items()}, tuple(kept(t) for t in self.algebra))


class SiteShape(NamedTuple):
    """The parameters that one site moves and the shape of its algebra coordinates."""

    parameters: tuple[str, ...]
    algebra: tuple[int, ...]


class Shapes(NamedTuple):
    """What a rule with fixed sizes needs to know of a network: parameter shapes and sites."""

    params: dict[str, tuple[int, ...]]
    sites: tuple[SiteShape, ...]


def shapes_of(params: Params, symmetry: Symmetry) -> Shapes:
    """The shapes of one network; the leading task dimension of ``params`` is left out, and so are sites whose group has
    no Lie algebra, which no rule moves along."""
    return Shapes(
        {name: tuple(tensor.shape[1:]) for name, tensor in params.items()},
        tuple(SiteShape(site.parameters, tuple(site.group.algebra_shape)) for site in symmetry.continuous.sites),
    )


def describe(shapes: Shapes) -> str:
    """Parameter shapes in words, with the elements' where there are any."""
    params = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.params.items())
    sites = ", ".join("x".join(map(str, site.algebra)) for site in shapes.sites)
    return f"{params} (elements {sites})" if sites else params


class Rule(Described, nn.Module, ABC):
    """A learned or hand-written optimizer. Its ``nn.Parameter``s, if any, are the meta-parameters phi.

    Rules that learn take ``shapes`` as their first argument if their sizes depend on the network, and only plain
    numbers, strings and booleans beside it: these are what a run folder stores.

    What others read of a rule, on the class or set by its ``__init__``; a rule says only what differs:

    Attributes:
        observes_hidden: Observations hold the activations at every site.
        observes_grams: Observations hold the second moments of the activations, where they are known.
        nonnegative_losses: It takes the least loss to be zero: it reads logarithms of losses, or Polyak's step length.
        element_modules: Names of the modules (and parameters) of this rule that elements are made by.
        shapes: Those of the network whose sizes this rule has; None for rules that fit every network.
        horizon: Steps it is made for; None for rules that do not go by one.
        time_scale: What steps are divided by before the rule reads them, see :meth:`for_horizon`.
        decays: Its step lengths decay to nearly zero at the horizon.
        scheduled: It says itself in which steps it teleports; where this is set to False, in every one.
        backtracking: Updates that would raise the loss are shortened, see :mod:`backtracking`.
        monotone: Its iterates are trial points: what counts at a step is the lowest loss so far.
        config: How a rule that was loaded has been made and trained.
        experience: What it has met in training, if it was trained.
        meta_step: For how many meta-steps.
    """

    observes_hidden: bool = False
    observes_grams: bool = False
    nonnegative_losses: bool = False
    element_modules: tuple[str, ...] = ()
    shapes: Shapes | None = None
    horizon: int | None = None
    time_scale: float = 1.0
    decays: bool = False
    scheduled: bool = True
    backtracking: bool = False
    monotone: bool = False
    config: dict[str, Any] | None = None
    experience: Experience | None = None
    meta_step: int | None = None

    @abstractmethod
    def init(self, params: Params, symmetry: Symmetry) -> Any:
        """The state before the first step, for a batch of tasks."""

    @abstractmethod
    def forward(self, observation: Observation, state: Any) -> tuple[Proposal, Any]:
        """One step: the proposal for ``g . (w + f)`` and the next state."""

    def transport(self, state: Any, symmetry: Symmetry, elements: tuple[Element, ...]) -> Any:
        """The state after the group elements have acted on the parameters: what was measured at the weights before
        moves along. Unchanged by default. ``elements`` hold g and its inverse per site, the identity where nothing
        moved."""
        return state

    def running_mean(self, state: Any, decay: float) -> Params | None:
        """The mean ``m <- decay m + (1 - decay) g`` of the gradients, from 0, where the state holds it: others need not
        keep it too. None by default."""
        return None

    def for_horizon(self, steps: int) -> Self:
        """A copy for runs of ``steps`` steps: what it reads of the time, when it teleports, and where its step lengths
        end, is stretched from the horizon that it was trained for to that. ``time_scale`` is the ratio of the two.

        Raises ``UserError`` for rules that do not go by a horizon.
        """
        if self.horizon is None or not isinstance(steps, int) or steps < 1:
            raise UserError(
                f"{type(self).__name__} cannot be made for {steps} steps: give 1 or more, and a rule with a horizon"
            )
        copy = deepcopy(self)
        copy.scale_time(steps / self.horizon)
        return copy

    def scale_time(self, scale: float) -> None:
        """Sets the ``time_scale`` of the rule and of those inside it."""
        for module in self.modules():
            if isinstance(module, Rule):
                module.time_scale = scale

    def lasting(self, steps: int) -> Self:
        """The old name of :meth:`for_horizon`."""
        warnings.warn("Rule.lasting is called for_horizon: use that name", DeprecationWarning, stacklevel=2)
        return self.for_horizon(steps)

    def meta_groups(self) -> dict[str, list[str]]:
        """Names of the meta-parameters by what they produce, ``element`` for those of the ``element_modules``, else
        ``update``: the published schedule trains the two with different learning rates."""
        groups: dict[str, list[str]] = {"update": [], "element": []}
        for name, _ in self.named_parameters():
            groups["element" if name.split(".")[0] in self.element_modules else "update"].append(name)
        return groups


@contextmanager
def initialized(seed: int) -> Iterator[None]:
    """Inside, new rules draw their initial meta-parameters from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
