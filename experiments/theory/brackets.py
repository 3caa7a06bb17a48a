"""Vector fields on parameter space, derivatives along them, and their Lie bracket; exact, by differentiating twice
in reverse mode.

A point is a tensor or a dictionary of tensors, one point at a time (``torch.func.vmap`` maps over more); a field gives
a direction at every point. For the gradient flow A = -grad L and the field R of a one-parameter symmetry (so that
R L = 0) the function f = |grad L|^2 obeys

    A R f = R A f + [A, R] f.

A gradient flow that starts where f is largest on an orbit (R f = 0) stays at critical points of f on the orbits that it
passes exactly as long as the left side vanishes. If the group acts linearly, R A f = -2 [A, R] f everywhere, so that
A R f = -[A, R] f: the bracket alone decides. If its orbits fill the level sets, [A, R] f vanishes wherever R f does:
R A f alone decides.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp
from torch.utils._pytree import tree_leaves, tree_map

Field = Callable[[Any], Any]
Function = Callable[[Any], Tensor]


def gradient_flow(loss: Function) -> Field:
    """The field ``A = -grad L``."""
    slope = grad(loss)
    return lambda point: tree_map(lambda g: -g, slope(point))


def squared_slope(loss: Function) -> Function:
    """The function ``f = |grad L|^2``."""
    slope = grad(loss)
    return lambda point: sum(g.square().sum() for g in tree_leaves(slope(point))) + 0.0


def derivative(field: Field, function: Function) -> Function:
    """The function ``X F``: how fast F changes along the field X."""
    slope = grad(function)

    def along(point: Any) -> Tensor:
        pairs = zip(tree_leaves(slope(point)), tree_leaves(field(point)), strict=True)
        return torch.stack([(g * x).sum() for g, x in pairs]).sum()

    return along


def lie_bracket(a: Field, r: Field) -> Field:
    """The field ``[A, R] = DR A - DA R``, for which ``[A, R] F = A (R F) - R (A F)`` for every function F."""

    def bracket(point: Any) -> Any:
        along_a, along_r = _push(r, point, a(point)), _push(a, point, r(point))
        return tree_map(torch.sub, along_a, along_r)

    return bracket


def _push(field: Field, point: Any, direction: Any) -> Any:
    """``D field . direction``: the derivative, by its adjoint, of ``v -> (D field)^T v``, which is linear."""
    values, pull, *_ = vjp(field, point)
    _, push, *_ = vjp(lambda v: pull(v)[0], tree_map(torch.zeros_like, values))
    return push(direction)[0]
