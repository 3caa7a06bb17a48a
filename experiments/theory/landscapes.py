"""Loss functions ``L(x) = |h(x)|^2`` with h invertible, on which SO(2) acts by ``x -> h^-1(turn(h(x), angle))``.

Turns of the plane fill the level sets; turns about one axis in space do not. Functions take one point ``(n,)``;
``vmap`` maps them over rows of points. Everything is float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from experiments.theory.brackets import squared_slope
from experiments.theory.orbits import Peak, highest
from meta_teleport.tasks.functions import FUNCTIONS, PlaneFunction

Turn = Callable[[Tensor, Tensor], Tensor]


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def turn_plane(u: Tensor, angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return torch.stack([c * u[0] - s * u[1], s * u[0] + c * u[1]])


def turn_about(axis: Callable[[Tensor], Tensor]) -> Turn:
    """The rotation of space about the unit vector ``axis(|u|^2)``, by Rodrigues' formula."""

    def turn(u: Tensor, angle: Tensor) -> Tensor:
        n = axis(u.square().sum())
        c, s = angle.cos(), angle.sin()
        return c * u + s * torch.linalg.cross(n, u) + (1 - c) * (n * u).sum() * n

    return turn


@dataclass(frozen=True)
class Landscape:
    """``h``, its inverse, the turn that acts on ``h(x)``, and the half-width of the cube that starts are drawn from."""

    name: str
    h: Callable[[Tensor], Tensor]
    h_inverse: Callable[[Tensor], Tensor]
    turn: Turn = turn_plane
    dimension: int = 2
    spread: float = 2.0

    def loss(self, x: Tensor) -> Tensor:
        return self.h(x).square().sum()

    def act(self, x: Tensor, angle: Tensor) -> Tensor:
        return self.h_inverse(self.turn(self.h(x), angle))

    def symmetry(self, x: Tensor) -> Tensor:
        """The field R: the velocity of the orbit at x."""
        return jacrev(lambda angle: self.act(x, angle))(x.new_zeros(()))

    @cached_property
    def gradient(self) -> Callable[[Tensor], Tensor]:
        return grad(self.loss)

    @cached_property
    def hessian(self) -> Callable[[Tensor], Tensor]:
        return jacrev(self.gradient)

    @cached_property
    def squared_slope(self) -> Callable[[Tensor], Tensor]:
        return squared_slope(self.loss)

    def steepest(self, points: Tensor, angles: int = 256) -> tuple[Tensor, Peak]:
        """The points ``(tasks, n)`` moved to the largest gradient norm on their orbits, and the peak."""
        peak = highest(lambda x, angle: self.squared_slope(self.act(x, angle)), points, angles)
        return vmap(self.act)(points, peak.angle), peak

    def starts(self, count: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(count, self.dimension, generator=generator, dtype=torch.float64)
        return self.spread * (2 * uniform - 1)

    def turned(self, points: Tensor, generator: torch.Generator) -> Tensor:
        """The points moved by angles drawn uniformly."""
        angles = torch.rand(len(points), generator=generator, dtype=torch.float64) * (2 * torch.pi)
        return vmap(self.act)(points, angles)


def plane(name: str, data: dict[str, Tensor] | None = None) -> Landscape:
    """One member of the package's two-dimensional test functions; ``data`` as ``Functions`` draws it, for one task."""
    function: PlaneFunction = FUNCTIONS[name]
    known = data or {}
    return Landscape(
        name,
        lambda x: function.h(x.unsqueeze(0), known).squeeze(0),
        lambda u: function.h_inverse(u.unsqueeze(0), known).squeeze(0),
        spread=function.spread,
    )


def ellipse(stretch: float = 5.0) -> Landscape:
    return plane("ellipse", {"stretch": tensor(stretch)})


def quartic(name: str, quadratic: Tensor, fourth: Tensor, mix: Tensor | None = None) -> Landscape:
    """The convex ``L(x) = sum_i q_i y_i^2 / 2 + c_i y_i^4 / 4`` with ``y = mix x``; the minimum is 0 at 0."""
    matrix = torch.eye(len(quadratic), dtype=torch.float64) if mix is None else mix
    inverse = torch.linalg.inv(matrix)

    def h(x: Tensor) -> Tensor:
        y = matrix @ x
        return y * (quadratic / 2 + fourth * y.square() / 4).sqrt()

    def h_inverse(u: Tensor) -> Tensor:
        half = quadratic / 2
        return inverse @ (u * (2 / (half + (half.square() + fourth * u.square()).sqrt())).sqrt())

    return Landscape(name, h, h_inverse, dimension=len(quadratic))


def ellipsoid(name: str, curvatures: Tensor, axis: Callable[[Tensor], Tensor]) -> Landscape:
    """``L(x) = sum_i q_i x_i^2 / 2`` in space, with turns about one axis: orbits are curves on the level surfaces."""
    scale = (curvatures / 2).sqrt()
    return Landscape(name, lambda x: scale * x, lambda u: u / scale, turn_about(axis), 3)
