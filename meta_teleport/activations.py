"""One table of activation functions and the facts about them on which symmetries rest."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from meta_teleport.errors import UserError

Function = Callable[[Tensor], Tensor]

SLOPE = 0.1


@dataclass(frozen=True)
class Activation:
    """An elementwise function ``sigma``.

    ``inverse`` is given exactly if sigma is a bijection of the real line, which action (a) needs: with tanh, for
    instance, ``g h`` leaves the range (-1, 1) for almost every g. ``homogeneous`` says that
    ``sigma(s z) = s sigma(z)`` for every s > 0, which positive scaling needs.
    """

    name: str
    function: Function
    inverse: Function | None = None
    homogeneous: bool = False

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z)


ACTIVATIONS = {
    a.name: a
    for a in (
        Activation("identity", lambda z: z, lambda h: h, homogeneous=True),
        Activation("leaky_relu", lambda z: F.leaky_relu(z, SLOPE), lambda h: F.leaky_relu(h, 1 / SLOPE), True),
        Activation("relu", F.relu, homogeneous=True),
        Activation("asinh", torch.asinh, torch.sinh),
        Activation("tanh", torch.tanh),
        Activation("sigmoid", torch.sigmoid),
        Activation("gelu", F.gelu),
        Activation("softplus", F.softplus),
    )
}


def activation(name: str) -> Activation:
    """The activation of that name: identity, leaky_relu (negative slope 0.1, as in the paper), relu, asinh, ...

    Raises ``UserError`` for a name that is not in the table.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"unknown activation '{name}': choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
