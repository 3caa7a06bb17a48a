"""A rule at one model: its copy there, what it observes, and its state."""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from meta_teleport.errors import UserError
from meta_teleport.optimizers.activation_hooks import GramHooks
from meta_teleport.optimizers.requirements import Place, new_parameter_fault
from meta_teleport.params import Params
from meta_teleport.rules.contract import require_proposal
from meta_teleport.rules.least_loss import require_readable
from meta_teleport.rules.rule import Observation, Proposal, Rule, describe, shapes_of
from meta_teleport.symmetry.symmetry import Element, Symmetry
from meta_teleport.teleportation.acceptance import all_finite
from meta_teleport.teleportation.ranks import Ranks, mean

PATIENCE = 5
"""How many teleports in a row are undone before a warning."""


class BoundRule:
    """A copy of ``rule``, in the precision and on the device of the named ``parameters`` of ``model``, and its state,
    which begins with the first proposal. ``hooks`` read activations if the rule does. What is ``frozen`` cannot join.
    Losses and activations are those of all ``ranks``, gradients those that are in ``.grad``.

    Raises ``UserError`` for a rule that is built for another network, or reads the activations of single points.
    """

    def __init__(
        self,
        rule: Rule,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        symmetry: Symmetry,
        ranks: Ranks,
        frozen: Mapping[str, nn.Parameter] = MappingProxyType({}),
    ) -> None:
        self.parameters, self.symmetry, self.frozen, self.state = parameters, symmetry, dict(frozen), None
        self.ranks = ranks
        if rule.observes_hidden:
            raise UserError(
                f"{type(rule).__name__} reads the activations of every single point, which hooks do not keep: choose a "
                "rule that reads their second moments"
            )
        _require_fit(rule, self.params(), symmetry)
        self.like = next(iter(parameters.values())).detach()
        self._shapes = {name: p.shape for name, p in parameters.items()}
        self._model, self._known = model, frozenset(name for name, _ in model.named_parameters())
        self.rule = deepcopy(rule).to(self.like).requires_grad_(False)
        self._warned = False
        self.hooks = GramHooks(model, symmetry if rule.observes_grams else Symmetry(()))

    def fault(self) -> str:
        """What of the model has changed, so that the rule does not fit it; empty if it does."""
        now = dict(self._model.named_parameters())
        for name, p in self.parameters.items():
            if now.get(name) is not p:
                return f"parameter '{name}' is another object than when the optimizer was made: make a new optimizer"
            if p.shape != self._shapes[name]:
                return (
                    f"parameter '{name}' is {Place.of(p)}, and was of shape {tuple(self._shapes[name])} when the "
                    "optimizer was made: make a new optimizer"
                )
            if (p.dtype, p.device) != (self.like.dtype, self.like.device):
                return (
                    f"the model is {p.dtype} on {p.device} now, and was {self.like.dtype} on {self.like.device} when "
                    "the optimizer was made: convert it first, and make the optimizer then"
                )
        for name, p in self.frozen.items():
            if p.requires_grad:
                return f"'{name}' was frozen when this optimizer was made and is trainable now: make a new optimizer"
        return new_parameter_fault(self._model, self._known)

    def params(self) -> Params:
        """The parameters as ``(1, *shape)``, not copied."""
        return {name: p.detach().unsqueeze(0) for name, p in self.parameters.items()}

    def gradients(self) -> Params:
        """What lies in ``.grad`` as ``(1, *shape)``, not copied; zero where there is none, or a frozen one.

        Raises ``UserError`` for a sparse gradient, and if there is none at all.
        """
        if all(still(p) for p in self.parameters.values()):
            raise UserError("no parameter has a gradient: compute the loss from the model and call backward, then step")
        return {name: _gradient(name, p).unsqueeze(0) for name, p in self.parameters.items()}

    def loss(self, loss: Tensor | float) -> Tensor:
        """The loss as ``(1,)``, the mean over all ranks. Raises ``UserError`` if it is not one number, or negative and
        read as a logarithm."""
        value = torch.as_tensor(loss, dtype=None if isinstance(loss, Tensor) else torch.float64).detach()
        if value.numel() != 1:
            raise UserError(f"the loss has shape {tuple(value.shape)}, not one number: take its .mean(), for instance")
        value = mean(value.to(self.like).reshape(1), self.ranks.group)
        require_readable(self.rule, value, torch.ones_like(value))
        return value

    def unreadable(self, gradients: Params, loss: Tensor) -> str:
        """Why no rule can go by these gradients and this loss ``(1,)``; empty if one can. That reads one number on the
        host."""
        sizes = torch.stack([*torch._foreach_norm(list(gradients.values())), loss[0].abs()])
        if bool(torch.isfinite(sizes).all()):
            return ""
        if not bool(torch.isfinite(loss)):
            return f"the loss is {float(loss)}"
        bad = (name for name, gradient in gradients.items() if not all_finite(gradient))
        return next((f"the gradient of '{name}' is not finite" for name in bad), "")

    def propose(self, params: Params, gradients: Params, loss: Tensor, step: int) -> Proposal:
        """What the rule proposes after ``step`` steps, seeing a loss ``(1,)``; its state goes on."""
        observation = Observation(
            params,
            gradients,
            loss,
            torch.full((1,), step, device=self.like.device),
            grams=self.hooks.grams(self.ranks.group),
            symmetry=self.symmetry,
        )
        self._warn_of_unseen()
        self.hooks.clear()
        self.begin()
        proposal, self.state = self.rule(observation, self.state)
        require_proposal(self.rule, proposal, params, self.symmetry)
        return proposal

    def resting(self, algebra: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The proposed elements, zero at sites of which a parameter stays where it is."""
        still_ones = {name for name, p in self.parameters.items() if still(p)}
        pairs = zip(self.symmetry.sites, algebra, strict=True)
        return tuple(t if still_ones.isdisjoint(site.parameters) else torch.zeros_like(t) for site, t in pairs)

    def begin(self) -> None:
        """Makes the state, if there is none."""
        if self.state is None:
            self.state = tree_map(torch.clone, self._blank())  # which may hold one tensor many times

    def _warn_of_unseen(self) -> None:
        """Once, of the sites whose layers have gradients and whose activations no hook has read."""
        used = {name for name, p in self.parameters.items() if p.grad is not None}
        missed = [site.name for site in self.hooks.unseen() if used.issuperset(site.parameters)]
        if missed and not self._warned:
            self._warned = True
            others = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
            warnings.warn(
                f"the activations at site '{missed[0]}'{others} are not seen, and the rule goes on without: "
                "call model.train() if the model is in evaluation mode; if it was compiled and run before this "
                "optimizer was made, call torch.compiler.reset() once",
                stacklevel=7,
            )

    def warn_at_the_horizon(self, step: int) -> None:
        """Where step lengths have decayed to nearly nothing."""
        rule = self.rule
        if rule.horizon is None or step != round(rule.horizon * rule.time_scale):
            return
        if any(isinstance(part, Rule) and part.decays for part in rule.modules()):
            warnings.warn(
                f"this rule's step lengths end at step {step}: make it for as many steps as you will take, by "
                "rule.optimizer(..., steps=n) or rule.for_horizon(n)",
                stacklevel=6,
            )

    def warn_of_skipping(self, fault: str) -> None:
        """A step is not taken."""
        warnings.warn(
            f"{fault}: this step is skipped, and so are others like it (see .skipped); if they go on, take a smaller "
            "lr or go back to a checkpoint",
            stacklevel=6,
        )

    def warn_of_undoing(self) -> None:
        """A closure was looked at, and none of the last teleports is carried out."""
        warnings.warn(
            f"the last {PATIENCE} teleports were undone, as the loss did not stay where it was: let the closure "
            "compute the same loss at every call (one batch, full precision, of the outputs alone), or call "
            "step(loss), which does not look",
            stacklevel=6,
        )

    def transport(self, elements: tuple[Element, ...]) -> None:
        """The elements have acted: the state moves along."""
        self.state = self.rule.transport(self.state, self.symmetry, elements)

    def release(self) -> None:
        """Copies what the state holds of parameters and gradients, which are about to change in place."""
        held = {t.data_ptr() for p in self.parameters.values() for t in (p, p.grad) if t is not None}
        if _holds(self.state, held):
            self.state = tree_map(torch.clone, self.state)

    def state_dict(self) -> list[Tensor] | None:
        """The tensors of the state, None before the first proposal."""
        return None if self.state is None else tree_flatten(self.state)[0]

    def load_state_dict(self, tensors: list[Tensor] | None) -> None:
        """Takes over what :meth:`state_dict` gave. Raises ``UserError`` if that was of another rule or model."""
        self.state = self.checked_state(tensors)

    def checked_state(self, tensors: list[Tensor] | None) -> Any:
        """The state that ``tensors`` hold. Raises ``UserError`` if it is of another rule or model."""
        if tensors is None:
            return None
        blank, structure = tree_flatten(self._blank())
        if [t.shape for t in blank] != [t.shape for t in tensors]:
            raise UserError(
                "this state is of another rule or of another model: make the optimizer as that one was made"
            )
        return tree_unflatten([t.to(b, copy=True) for t, b in zip(tensors, blank, strict=True)], structure)

    def _blank(self) -> Any:
        """The state before the first proposal."""
        return self.rule.init({name: p.clone() for name, p in self.params().items()}, self.symmetry)


def still(p: Tensor) -> bool:
    """Whether a parameter stays where it is: it has no gradient, or is frozen and has an old one."""
    return p.grad is None or not p.requires_grad


def _gradient(name: str, p: Tensor) -> Tensor:
    if p.grad is None or still(p):
        return torch.zeros_like(p)
    if p.grad.layout != torch.strided:
        raise UserError(f"the gradient of '{name}' is sparse, which rules do not read: use sparse=False")
    return p.grad


def _holds(state: Any, addresses: set[int]) -> bool:
    """Whether a tensor of the state lies at one of the addresses."""
    if isinstance(state, Tensor):
        return state.data_ptr() in addresses
    return any(_holds(leaf, addresses) for leaf in (state.values() if isinstance(state, dict) else state))


def _require_fit(rule: Rule, params: Params, symmetry: Symmetry) -> None:
    """Raises ``UserError`` if the rule is built for another network; sites count only if it proposes elements."""
    own, found = rule.shapes, shapes_of(params, symmetry)
    if own is None or own == (found if rule.meta_groups()["element"] else found._replace(sites=own.sites)):
        return
    raise UserError(
        f"this {type(rule).__name__} fits networks of {describe(own)} and the model has {describe(found)}: train a "
        "rule on these, or take one that fits every network"
    )
