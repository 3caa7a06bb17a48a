"""What a teleport raises or lowers: functions of the parameters, one number per task.

    gradient_norm    ||grad L(w)||^2                                             how fast the loss falls from here
    Sharpness        mean of L(w + t d) over lengths t and unit directions d     how fast it rises around here
    Curvature        mean curvature at w of the curves exp(t M) . w              how the orbit bends here

An objective maps ``(loss, params)`` to ``(tasks,)``, differentiable with respect to ``params``, because a search
follows its gradient. What it draws at random is fixed by its ``seed``: it is one deterministic function, the same for
every task.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.params import Params, axpy, rows, value_and_grad
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.averages import average
from meta_teleport.teleportation.curvature import kappa, unit_algebra

Loss = Callable[[Params], Tensor]
Objective = Callable[[Loss, Params], Tensor]

NAMES = ("gradient_norm", "sharpness", "curvature")

SEARCH_SCALES = tuple(i / 10 for i in range(1, 10))


def gradient_norm(loss: Loss, params: Params) -> Tensor:
    """The squared gradient norm ``||grad L(w)||^2``, shape ``(tasks,)``, differentiable with respect to ``params``.

    The initial rate of decrease of the loss under gradient flow, which the paper's teleports maximise (Zhao et al.
    2024, section 3). ``loss`` maps params to ``(tasks,)``; params must require gradients or depend on what does.
    """
    _, gradients = value_and_grad(loss, params, create_graph=True)
    return torch.stack([rows(g.square()).sum(1) for g in gradients.values()]).sum(0)


@dataclass(frozen=True)
class Sharpness:
    """The mean loss around w, ``phi(w) = mean of L(w + t d)`` over t in ``scales`` and random unit directions d.

    A direction has norm 1 over all parameters together and is uniform on that sphere. ``nonnegative`` is the published
    code's variant: entries uniform in [0, 1), divided by their norm, which sees one orthant only. One call costs
    ``len(scales) * directions`` evaluations of the loss (and as many of its gradient), the memory of one.

    The loss at w is part of it: where elements do not keep the loss (batches wider than a site can carry), a search
    may find the drift rather than the sharpness, so compare both.

    Source: Zhao et al. 2024, section 4.1. Its searches use ``SEARCH_SCALES`` and 100 directions, its correlations the
    scales 0.001, 0.011, ..., 0.191 (MNIST; a tenth of these elsewhere) and 200 directions.

    Raises ``UserError`` without scales or directions.
    """

    scales: tuple[float, ...] = SEARCH_SCALES
    directions: int = 10
    seed: int = 0
    nonnegative: bool = False

    def __post_init__(self) -> None:
        if not self.scales or self.directions < 1:
            raise UserError("sharpness is a mean over scales and directions: give at least one of each")

    def __call__(self, loss: Loss, params: Params) -> Tensor:
        def perturbed(scale: float, direction: Params, params: Params) -> Tensor:
            return loss(axpy(scale, direction, params))

        drawn = self._directions(params)
        return average((partial(perturbed, scale, d) for d in drawn for scale in self.scales), params)

    def _directions(self, params: Params) -> Iterator[Params]:
        """Unit directions, tensors ``(1, *shape)``, drawn on the device of the parameters."""
        like = next(iter(params.values()))
        generator = torch.Generator(like.device).manual_seed(self.seed)
        draw = torch.rand if self.nonnegative else torch.randn
        for _ in range(self.directions):
            drawn = {
                name: draw(1, *p.shape[1:], generator=generator, dtype=p.dtype, device=p.device)
                for name, p in params.items()
            }
            norm = torch.stack([d.square().sum() for d in drawn.values()]).sum().sqrt()
            yield {name: d / norm for name, d in drawn.items()}


@dataclass(frozen=True, eq=False)
class Curvature:
    """The mean curvature of the orbit at w, ``psi(w) = mean of kappa_M(w)`` over random algebra elements M.

    ``kappa_M`` is the curvature at t = 0 of the curve ``exp(t M) . w`` (see the module ``curvature``). Each of the
    ``directions`` elements M acts at once on the sites named in ``sites`` (None: on all) and is uniform on the sphere
    of Frobenius norm 1 over these. ``inputs`` are those of the network, which data-dependent sites need
    (:meth:`Symmetry.prepare` of them saves their pseudo-inverse); the loss plays no part.

    Source: Zhao et al. 2024, section 4.2.

    Raises ``UserError`` without directions, without a site that has a Lie algebra, and for sites that do not exist.
    """

    symmetry: Symmetry
    inputs: Tensor | LayerInput | None = None
    directions: int = 10
    seed: int = 0
    sites: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        known = [site.name for site in self.symmetry.continuous.sites]
        for name in self.sites or ():
            if name not in known:
                raise UserError(f"no site '{name}' with a Lie algebra: choose among {', '.join(known) or 'none'}")
        if not known or self.sites == () or self.directions < 1:
            raise UserError("curvature is a mean over directions at sites with a Lie algebra: give one of each or more")

    def __call__(self, loss: Loss, params: Params) -> Tensor:
        symmetry, like = self.symmetry.continuous, next(iter(params.values()))
        inputs = symmetry.prepare(self.inputs) if isinstance(self.inputs, Tensor) else self.inputs
        generator = torch.Generator().manual_seed(self.seed)
        drawn = (unit_algebra(symmetry, self.sites, like, generator) for _ in range(self.directions))
        return average((partial(kappa, symmetry, algebra, inputs) for algebra in drawn), params)


def named(
    name: str, symmetry: Symmetry, inputs: Tensor | LayerInput | None, generator: torch.Generator | None
) -> Objective:
    """The objective of that name: gradient_norm, sharpness or curvature, with their default settings.

    ``symmetry`` and the network's ``inputs`` (for data-dependent sites) are those of the search. The seed of what is
    random is drawn from ``generator`` (0 without one).

    Raises ``UserError`` for a name that is not one of these.
    """
    if name not in NAMES:
        raise UserError(f"unknown objective '{name}': choose one of {', '.join(NAMES)}, or give a callable")
    if name == "gradient_norm":
        return gradient_norm
    seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return Sharpness(seed=seed) if name == "sharpness" else Curvature(symmetry, inputs, seed=seed)
