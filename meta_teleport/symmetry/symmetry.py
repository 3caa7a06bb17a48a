"""The symmetry of one model: its sites, bottom to top."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from meta_teleport.errors import UserError
from meta_teleport.linalg.pseudo_inverse import invert_columns
from meta_teleport.params import Params
from meta_teleport.symmetry.manual import Axis, manual_sites
from meta_teleport.symmetry.site import Layer, LayerInput, Site

Element = tuple[Tensor, Tensor]  # g and its inverse


class Refusal(NamedTuple):
    """Parameters that no site moves (or not by the group one might expect), and why."""

    parameters: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Symmetry:
    """All sites of one model and, where it is a chain of layers, the layers that lie between them.

    ``refusals`` say which parameters no site moves, and why. One of the ``layers``, bottom to top, produces the units
    of each site; the last layer is not listed. ``keeps_loss`` says that a teleport is meant to leave the loss alone, so
    that one that does not is undone; it is False where drift has been accepted: wide batches, first-order elements.
    """

    sites: tuple[Site, ...]
    layers: tuple[Layer, ...] = ()
    keeps_loss: bool = True
    refusals: tuple[Refusal, ...] = ()

    def __str__(self) -> str:
        """One line per site, then the number of refusals and one line for each."""
        refused = [f"  {', '.join(refusal.parameters)}: {refusal.reason}" for refusal in self.refusals]
        return "\n".join([*map(str, self.sites), f"refusals: {len(refused)}", *refused])

    @property
    def continuous(self) -> "Symmetry":
        """The sites whose group has a Lie algebra, which a search can follow: the same without permutations."""
        sites = tuple(site for site in self.sites if site.group.has_algebra)
        return self if len(sites) == len(self.sites) else replace(self, sites=sites)

    @staticmethod
    def manual(model: nn.Module, sites: Mapping[str, tuple[str, Sequence[Axis], Sequence[Axis]]]) -> "Symmetry":
        """Sites named by hand: ``{name: (group, producers, consumers)}``, exact for every input if they are true.

        ``group`` is one of ``groups.GROUPS``: gl, orthogonal, scaling, permutation. A producer is the name of a
        parameter with the units along its axis 0, a consumer one with the units along axis 1; ``(name, axis)`` says
        otherwise, and a :class:`View` shows parts and heads. Whether the sites are true is for ``meta_teleport.verify``
        to say.

            Symmetry.manual(model, {"hidden": ("scaling", ["0.weight", "0.bias"], ["2.weight"])})

        Raises ``UserError`` for groups and parameters that do not exist, for entries of another form, and for sizes
        and views that do not fit.
        """
        return Symmetry(manual_sites(model, sites))

    def only(self, *names: str) -> "Symmetry":
        """The same with the named sites alone. Raises ``UserError`` for a name that no site has."""
        known = {site.name: site for site in self.sites}
        for name in names:
            if name not in known:
                raise UserError(f"no site '{name}': choose from {', '.join(known) or 'none, as there are no sites'}")
        return replace(self, sites=tuple(known[name] for name in names))

    def require_fit(self, model: nn.Module) -> None:
        """Raises ``UserError`` if a site belongs to another model: by the names or the shapes of its parameters. Only
        permutations move buffers."""
        parameters = {name: parameter.shape for name, parameter in model.named_parameters()}
        buffers = {name: buffer.shape for name, buffer in model.named_buffers()}
        for site in self.sites:
            shapes = parameters if site.group.has_algebra else {**buffers, **parameters}
            for view in site.producers + site.consumers:
                if view.name in shapes and view.fits(shapes[view.name]):
                    continue
                shape = tuple(shapes[view.name]) if view.name in shapes else None
                why = f"has shape {shape} in this model" if shape else "is not a parameter of the model"
                raise UserError(f"site '{site.name}' moves '{view.name}', which {why}: find the symmetry of this model")

    def prepare(self, inputs: Tensor) -> LayerInput:
        """The network's inputs ``(*tasks, n, d)`` as the first layer sees them.

        The pseudo-inverse that action (a) needs of them is computed here once; do this where the same batch is used
        for many steps.
        """
        columns = inputs.mT
        if self.sites and self.sites[0].inverts_inputs and self._below(self.sites[0]) == 0:
            return LayerInput(columns, invert_columns(self.layers[0].augment(columns)))
        return LayerInput(columns)

    def exp(self, algebra: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One group element per site from algebra coordinates."""
        self._count(algebra)
        return tuple(site.group.exp(t) for site, t in zip(self.sites, algebra, strict=True))

    def act(
        self,
        params: Params,
        elements: Sequence[Tensor],
        inputs: Tensor | LayerInput | None = None,
        inverses: Sequence[Tensor] | None = None,
    ) -> Params:
        """The parameters moved by one element per site, bottom to top.

        Each data-dependent site sees the input of its layer recomputed from the weights that the sites below it
        have moved. ``inputs`` are the network's, ``(*tasks, n, d)``, or :meth:`prepare` of them; sites that are
        exact for every input need none. ``inverses`` of the elements, where they are known, save solving for them.
        Permutations through BatchNorm move its running statistics: ``params`` hold the model's buffers then, too.

        Raises ``UserError`` for a number of elements that is not that of the sites, for a tensor that is missing, and
        for a singular matrix. Elements
        that are not finite, or singular scalings, give parameters that are not: to look at the numbers would make
        every step wait for the device, so refusing them is left to ``meta_teleport.teleport``.
        """
        self._count(elements)
        at = self.prepare(inputs) if isinstance(inputs, Tensor) else inputs
        known = (None,) * len(elements) if inverses is None else inverses
        reached = 0
        for site, g, inverse in zip(self.sites, elements, known, strict=True):
            if at is not None and site.needs_inputs:
                for layer in self.layers[reached : self._below(site)]:
                    at = LayerInput(layer.forward(params, at.columns))
                reached = self._below(site)
            try:
                params = site.act(params, g, at, inverse)
            except torch.linalg.LinAlgError as error:
                raise UserError(
                    f"the element at site '{site.name}' is singular: give one that has an inverse, such as exp(T)"
                ) from error
        return params

    def flow(self, params: Params, algebra: Sequence[Tensor], inputs: Tensor | LayerInput | None = None) -> Params:
        """``act`` with ``exp(T)`` for algebra coordinates T, one tensor per site. As the inverse is exp(-T), there is
        nothing to solve."""
        self._count(algebra)
        return self.move(params, self.exp_pairs(algebra), inputs)

    def exp_pairs(self, algebra: Sequence[Tensor]) -> tuple[Element, ...]:
        """``exp(T)`` and its inverse per site."""
        self._count(algebra)
        return tuple(site.group.exp_pair(t) for site, t in zip(self.sites, algebra, strict=True))

    def move(self, params: Params, elements: Sequence[Element], inputs: Tensor | LayerInput | None = None) -> Params:
        """``act`` with elements whose inverses are known: pairs ``(g, g^-1)``, one per site."""
        return self.act(params, [g for g, _ in elements], inputs, [inverse for _, inverse in elements])

    def transport(self, gradients: Params, elements: Sequence[Element]) -> Params:
        """Gradients, or running means of them, after the parameters have moved by pairs ``(g, g^-1)``; what sites move
        that are not exact stays."""
        for site, (g, inverse) in zip(self.sites, elements, strict=True):
            gradients = site.transport(gradients, g, inverse) if site.exact else gradients
        return gradients

    def transport_squares(self, squares: Params, elements: Sequence[Element]) -> Params:
        """The same for running means of squared gradients, see :meth:`Site.transport_squares`."""
        for site, (g, inverse) in zip(self.sites, elements, strict=True):
            squares = site.transport_squares(squares, g, inverse) if site.exact else squares
        return squares

    def hidden(self, params: Params, inputs: Tensor | LayerInput) -> tuple[Tensor, ...]:
        """The activations that each site's group acts on, as columns ``(*tasks, k, n)``, one tensor per site."""
        if not self.layers:
            return ()
        h = inputs.mT if isinstance(inputs, Tensor) else inputs.columns
        activations = []
        for layer in self.layers:
            h = layer.forward(params, h)
            activations.append(h)
        return tuple(activations[self._below(site)] for site in self.sites)

    def grams(self, params: Params, inputs: Tensor | LayerInput) -> tuple[Tensor, ...]:
        """Second moments of the activations that each site's group acts on, ``h h^T / n`` of shape ``(*tasks, k, k)``,
        or its diagonal ``(*tasks, k)`` for positive scalings; empty for a model that is not a chain of layers."""
        return tuple(
            site.group.gram(h) / h.shape[-1] for site, h in zip(self.sites, self.hidden(params, inputs), strict=False)
        )

    def _below(self, site: Site) -> int:
        """The number of layers below the one that produces the units of a site."""
        return next((i for i, layer in enumerate(self.layers) if layer.weight in site.parameters), 0)

    def require_exact(self, params: Params, n: int, option: str) -> None:
        """Refuses a batch of ``n`` points that is wider than a data-dependent site can carry.

        Raises ``UserError`` naming the two numbers and the ``option`` that allows it nevertheless.
        """
        for site in self.sites:
            limit = site.limit(params)
            if limit is not None and n > limit:
                raise UserError(
                    f"site '{site.name}' keeps the loss on at most {limit} points and the batch has {n}: use fewer "
                    f"points, a wider layer, or {option} to accept the drift"
                )

    def _count(self, elements: Sequence[Tensor]) -> None:
        if len(elements) != len(self.sites):
            raise UserError(
                f"{len(elements)} elements for {len(self.sites)} sites: give one per site, in the order of .sites"
            )
