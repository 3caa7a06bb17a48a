"""A site: one place in a network where a group acts.

An exact site leaves the function of the network unchanged for every input: the group multiplies what produces its
units and the inverse multiplies what consumes them,

    V -> g V,  b -> g b,  U -> U g^-1.

Linear pairs (GL), positively homogeneous layers (positive scaling) and hidden units (permutation) are all this one
formula. The data-dependent actions of the paper (``general_linear``, ``pseudo_inverse``) are sites with their own
``act``.
"""

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from meta_teleport.activations import Activation
from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.symmetry.group import Group
from meta_teleport.symmetry.views import View


class LayerInput(NamedTuple):
    """What a layer sees: activations as columns ``(*tasks, d, n)`` and, where it was worth keeping, their inverse.

    ``pseudo_inverse`` ``(*tasks, n, d)`` (or ``n, d + 1`` with biases) belongs to the columns with a row of ones
    appended where the layer has a bias.
    """

    columns: Tensor
    pseudo_inverse: Tensor | None = None


@dataclass(frozen=True)
class Layer:
    """The names of a linear layer's parameters and the activation that follows it."""

    weight: str
    bias: str | None
    activation: Activation

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters of the layer that exist."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def augmented(self, params: Params) -> Tensor:
        """``[V, b]`` of shape ``(*tasks, k, d + 1)``, or V alone where there is no bias."""
        v = params[self.weight]
        return v if self.bias is None else torch.cat([v, params[self.bias].unsqueeze(-1)], dim=-1)

    def split(self, augmented: Tensor) -> Params:
        """The inverse of :meth:`augmented`."""
        if self.bias is None:
            return {self.weight: augmented}
        return {self.weight: augmented[..., :-1], self.bias: augmented[..., -1]}

    def augment(self, columns: Tensor) -> Tensor:
        """The columns with the row of ones that a bias multiplies, ``(*tasks, d + 1, n)``."""
        if self.bias is None:
            return columns
        return torch.cat([columns, torch.ones_like(columns[..., :1, :])], dim=-2)

    def forward(self, params: Params, columns: Tensor) -> Tensor:
        """The layer's output ``sigma(V X + b)``, shape ``(*tasks, k, n)``."""
        z = params[self.weight] @ columns
        return self.activation(z if self.bias is None else z + params[self.bias].unsqueeze(-1))


@dataclass(frozen=True)
class Site:
    """A group, the parameters it multiplies (producers) and those its inverse multiplies (consumers).

    A permutation may move buffers too, under the names they have in the model: running statistics.
    """

    name: str
    group: Group
    producers: tuple[View, ...]
    consumers: tuple[View, ...]

    needs_inputs: ClassVar[bool] = False
    """Whether the action depends on data."""
    inverts_inputs: ClassVar[bool] = False
    """Whether it needs the pseudo-inverse of what its layer sees."""

    def __str__(self) -> str:
        """``hidden: 3 x GL(8), 0.weight, 0.bias -> 2.weight``: name, copies of the group, producers, consumers."""
        made, read = ([view.name for view in views] for views in (self.producers, self.consumers))
        made = made or [name for name in self.parameters if name not in read]
        read = read or [name for name in self.parameters if name not in made]
        copies = "".join(f"{n} x " for n in self.group.blocks)
        sides = (", ".join(dict.fromkeys(names)) for names in (made, read))
        return f"{self.name}: {copies}{type(self.group).__name__}({self.group.k}), {' -> '.join(sides)}"

    @property
    def exact(self) -> bool:
        """Whether every element leaves the function of the network unchanged for every input: not where the action
        depends on data, and not with elements of first order."""
        return not self.needs_inputs and self.group.is_exact

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters (and buffers) that the site moves, bottom to top."""
        return tuple(view.name for view in self.producers + self.consumers)

    @property
    def consumer_names(self) -> tuple[str, ...]:
        """The names of the parameters that read the units."""
        return tuple(view.name for view in self.consumers)

    def produced(self, params: Params) -> Tensor:
        """V: all that produces the units, biases as columns, ``(*tasks, *blocks, k, rest)``."""
        return self._side_by_side(self.producers, params)

    def consumed(self, params: Params) -> Tensor:
        """U^T: all that reads the units, ``(*tasks, *blocks, k, rest)``."""
        return self._side_by_side(self.consumers, params)

    def _side_by_side(self, views: Sequence[View], params: Params) -> Tensor:
        """The matrices that the views show; a column of zeros where there are none."""
        matrices = [view.matrix(params[view.name]) for view in views]
        if not matrices:
            like = next(iter(params.values()))
            return like.new_zeros(len(like), *self.group.blocks, self.group.k, 1)
        return torch.cat(matrices, dim=-1) if len(matrices) > 1 else matrices[0]

    def act(self, params: Params, g: Tensor, inputs: LayerInput | None = None, inverse: Tensor | None = None) -> Params:
        """The parameters moved by ``g``; those that the site does not touch are passed through.

        ``inverse`` is g^-1 where it is known, which saves solving for it. Raises ``UserError`` where ``params`` lack a
        tensor that the site moves.
        """
        moved = dict(params)
        for name in self.parameters:
            if name not in moved:
                raise UserError(
                    f"site '{self.name}' moves '{name}', which is not given: act on the model's parameters and buffers "
                    "together, {**dict(model.named_parameters()), **dict(model.named_buffers())}"
                )
        for view in self.producers:
            v = self.group.apply(g, view.matrix(moved[view.name]))
            moved[view.name] = view.restore(v, moved[view.name])
        for view in self.consumers:
            u = view.matrix(moved[view.name]).mT
            u = self.group.apply_inverse(u, g) if inverse is None else self.group.apply_right(u, inverse)
            moved[view.name] = view.restore(u.mT, moved[view.name])
        return moved

    @property
    def linear(self) -> "Site":
        """The site as it acts on gradients and on differences of parameters, into which no shift of a view enters."""
        if not any(view.shift for view in self.producers + self.consumers):
            return self
        producers, consumers = (tuple(view.linear for view in side) for side in (self.producers, self.consumers))
        return replace(self, producers=producers, consumers=consumers)

    def transport(self, gradients: Params, g: Tensor, inverse: Tensor | None = None) -> Params:
        """Where the gradients at w (or running means of them) are after w has moved to g.w: the image under the dual
        element,

            dL/dV -> g^-T dL/dV,   dL/dU -> dL/dU g^T,

        because L(g.w) = L(w) for all w. Exact sites only; parameters that the site does not touch are passed through,
        and buffers have no gradients. ``inverse`` is g^-1 where it is known.
        """
        site = self.linear.among(gradients)
        return site.act(gradients, self.group.dual(g, inverse), inverse=self.group.transpose(g))

    def transport_squares(self, squares: Params, g: Tensor, inverse: Tensor | None = None) -> Params:
        """The same for running means of squared gradients: every entry of the two matrices above squared.

        Exact for positive scalings and permutations. For matrix groups each new gradient is a combination of old ones,
        and its expected square is this one if they are uncorrelated.
        """
        group = self.group
        dual, undo = group.dual(g, inverse), group.transpose(g)
        return self.linear.among(squares).act(squares, group.squared(dual), inverse=group.squared(undo))

    def among(self, names: Container[str]) -> "Site":
        """The site on those of its parameters (and buffers) that are among ``names``."""
        sides = [tuple(view for view in side if view.name in names) for side in (self.producers, self.consumers)]
        if len(sides[0]) + len(sides[1]) == len(self.producers) + len(self.consumers):
            return self
        return replace(self, producers=sides[0], consumers=sides[1])

    def limit(self, params: Params) -> int | None:
        """The widest batch on which the loss is unchanged; None if it is for every input."""
        return None


class DataDependentSite(Site, ABC):
    """A site whose action depends on a batch, which it leaves alone where it is no wider than :meth:`limit`."""

    needs_inputs = True

    @classmethod
    @abstractmethod
    def between(cls, exact: Site, below: Layer, above: Layer, displacement: bool) -> "DataDependentSite":
        """The site between two layers that has the name, the group and the views of an ``exact`` one there."""
