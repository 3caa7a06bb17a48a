"""The contract of a rule: the map from what is observed at a step to an update and group elements.

    state = rule.init(params, symmetry)
    proposal, state = rule(observation, state)
    w <- g . (w + f)         with f = proposal.update and g = exp(proposal.algebra), one element per site

Everything a rule reads and writes is batched: tensors ``(tasks, ...)``. A state is a (nested) NamedTuple whose
leaves all have the task dimension in front, so that single tasks can be replaced.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.params import Params, per_task
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
    """The shapes of one network; the leading task dimension of ``params`` is left out."""
    return Shapes(
        {name: tuple(tensor.shape[1:]) for name, tensor in params.items()},
        tuple(SiteShape(site.parameters, tuple(site.group.algebra_shape)) for site in symmetry.sites),
    )


def describe(shapes: Shapes) -> str:
    """Parameter shapes in words, with the elements' where there are any."""
    params = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.params.items())
    sites = ", ".join("x".join(map(str, site.algebra)) for site in shapes.sites)
    return f"{params} (elements {sites})" if sites else params


class Rule(nn.Module, ABC):
    """A learned or hand-written optimizer. Its ``nn.Parameter``s, if any, are the meta-parameters phi.

    Rules that learn take ``shapes`` as their first argument if their sizes depend on the network, and only plain
    numbers, strings and booleans beside it: these are what a run folder stores. ``config`` and ``meta_step`` say
    how a rule that was loaded has been trained. ``falls`` says that its step lengths fall to nearly zero at a
    horizon, ``backtracking`` that updates are shortened which would raise the loss, see :mod:`backtracking`.
    """

    observes_hidden = False
    observes_grams = False
    falls = False
    backtracking = False
    tempo = 1.0
    config: dict[str, Any] | None = None
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

    def lasting(self, steps: int) -> Self:
        """A copy for runs of ``steps`` steps: what it reads of the time, when it teleports, and where its step lengths
        end, is stretched from the horizon that it was trained for to that. ``tempo`` is the ratio of the two.

        Raises ``UserError`` for rules that do not go by a horizon.
        """
        horizon = getattr(self, "horizon", None)
        if not isinstance(horizon, int) or not isinstance(steps, int) or steps < 1:
            raise UserError(
                f"{type(self).__name__} cannot be made to last {steps} steps: give 1 or more, and a rule with a horizon"
            )
        copy = deepcopy(self)
        for module in copy.modules():
            if isinstance(module, Rule):
                module.tempo = steps / horizon
        return copy

    def meta_groups(self) -> dict[str, list[str]]:
        """Names of the meta-parameters by what they produce, ``element`` where they begin with that word, else
        ``update``: the published schedule trains the two with different learning rates."""
        names = [name for name, _ in self.named_parameters()]
        return {
            "update": [name for name in names if not name.startswith("element")],
            "element": [name for name in names if name.startswith("element")],
        }


@contextmanager
def initialized(seed: int) -> Iterator[None]:
    """Inside, new rules draw their initial meta-parameters from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
