"""What a teleport raises or lowers: functions of the parameters, one number per task.

    gradient_norm    ||grad L(w)||^2                                             how fast the loss falls from here
    Sharpness        mean of L(w + t d) over lengths t and unit directions d     how fast it rises around here
    Curvature        mean curvature at w of the curves exp(t M) . w              how the orbit bends here

An objective maps ``(loss, params)`` to ``(tasks,)`` and is differentiable with respect to ``params``. A search
differentiates it once, at many points, so that what an objective draws at random is fixed by its ``seed``: it is one
deterministic function for all tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.params import Params, aliases, axpy, rows
from meta_teleport.symmetry.site import LayerInput
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.teleportation.curvature import curvature, random_directions

Loss = Callable[[Params], Tensor]
Objective = Callable[[Loss, Params], Tensor]

NAMES = ("gradient_norm", "sharpness", "curvature")

SEARCH_SCALES = tuple(i / 10 for i in range(1, 10))


def gradient_norm(loss: Loss, params: Params) -> Tensor:
    """The squared gradient norm ``||grad L(w)||^2``, shape ``(tasks,)``, differentiable with respect to ``params``.

    The initial rate of decrease of the loss under gradient flow, which the paper's teleports maximise (Zhao et al.
    2024, section 3). ``loss`` maps params to ``(tasks,)``; params must require gradients or depend on what does.
    """
    point = aliases(params)
    gradients = torch.autograd.grad(loss(point).sum(), list(point.values()), create_graph=True)
    return torch.stack([rows(g.square()).sum(1) for g in gradients]).sum(0)


@dataclass(frozen=True)
class Sharpness:
    """The mean loss around w, ``phi(w) = mean of L(w + t d)`` over t in ``scales`` and random unit directions d.

    A direction has norm 1 over all parameters together and is uniform on that sphere; ``nonnegative`` takes the
    absolute value of each coordinate, as the published code does, which averages over one orthant only. The same
    directions serve every scale and every task. One call costs ``len(scales) * directions`` evaluations of the loss.

    Source: Zhao et al. 2024, section 4.1. Its searches use ``SEARCH_SCALES`` (0.1 to 0.9) and 100 directions.

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
        like = next(iter(params.values()))
        generator = torch.Generator(like.device).manual_seed(self.seed)
        total = like.new_zeros(like.shape[0])
        for _ in range(self.directions):
            direction = self._direction(params, generator)
            for scale in self.scales:
                total = total + loss(axpy(scale, direction, params))
        return total / (len(self.scales) * self.directions)

    def _direction(self, params: Params, generator: torch.Generator) -> Params:
        """One direction, tensors ``(1, *shape)``, drawn on the device of the parameters."""
        drawn = {
            name: torch.randn(1, *p.shape[1:], generator=generator, dtype=p.dtype, device=p.device)
            for name, p in params.items()
        }
        if self.nonnegative:
            drawn = {name: d.abs() for name, d in drawn.items()}
        norm = torch.stack([d.square().sum() for d in drawn.values()]).sum().sqrt()
        return {name: d / norm for name, d in drawn.items()}


@dataclass(frozen=True, eq=False)
class Curvature:
    """The mean curvature of the orbit at w, ``psi(w) = mean of kappa_M(w)`` over random algebra elements M.

    ``kappa_M`` is the curvature at t = 0 of the curve ``exp(t M) . w`` (see the module ``curvature``). Each of the
    ``directions`` elements M acts on the sites named in ``sites``, or on all of them at once, and is uniform on the
    sphere of Frobenius norm 1 over these. ``inputs`` are those of the network, for data-dependent sites; the loss
    plays no part.

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
        unknown = [name for name in self.sites or () if name not in known]
        if unknown:
            raise UserError(f"no site '{unknown[0]}' to bend the orbit: choose among {', '.join(known) or 'none'}")
        if not known or self.sites == () or self.directions < 1:
            raise UserError(
                "curvature is a mean over directions at sites with a Lie algebra: give at least one of each"
            )

    def __call__(self, loss: Loss, params: Params) -> Tensor:
        symmetry, like = self.symmetry.continuous, next(iter(params.values()))
        generator = torch.Generator().manual_seed(self.seed)
        total = like.new_zeros(like.shape[0])
        for _ in range(self.directions):
            algebra = random_directions(symmetry, self.sites, like, generator)
            total = total + curvature(symmetry, params, algebra, self.inputs)
        return total / self.directions


def named(
    name: str, symmetry: Symmetry, inputs: Tensor | LayerInput | None, generator: torch.Generator | None
) -> Objective:
    """The objective of that name: gradient_norm, sharpness or curvature, with their default settings.

    ``symmetry`` and the network's ``inputs`` (for data-dependent sites) are those of the search; what is random is
    drawn from ``generator`` once (seed 0 without one).

    Raises ``UserError`` for a name that is not one of these.
    """
    if name not in NAMES:
        raise UserError(f"unknown objective '{name}': choose one of {', '.join(NAMES)}, or give a callable")
    if name == "gradient_norm":
        return gradient_norm
    seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return Sharpness(seed=seed) if name == "sharpness" else Curvature(symmetry, inputs, seed=seed)
