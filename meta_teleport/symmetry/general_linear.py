"""The paper's data-dependent action (a): GL through an invertible activation.

For consecutive weights V (k x d) then U (m x k), layer input X (d x n) and an activation that is a bijection of the
real line (Zhao et al. 2022, equation (8); 2024, section 2):

    U' = U g^-1
    V' = sigma^-1(g sigma(V X)) X^+                            plain form
    V' = V + [sigma^-1(g sigma(V X)) - V X] X^+                displacement form

The loss is unchanged on the batch X if n <= d and its columns are independent (n <= d + 1 with a bias, for which X
gets a row of ones). Both forms agree on the batch; the displacement form keeps the part of V that the batch does not
see, so the identity moves nothing even where X has no full rank.
"""

from dataclasses import dataclass
from typing import cast

from torch import Tensor

from meta_teleport.activations import Function
from meta_teleport.errors import UserError
from meta_teleport.linalg.pseudo_inverse import invert_columns
from meta_teleport.params import Params
from meta_teleport.symmetry.site import DataDependentSite, Layer, LayerInput, Site


@dataclass(frozen=True)
class GeneralLinearSite(DataDependentSite):
    """Action (a) between ``producer`` and the weights that consume its units."""

    producer: Layer
    displacement: bool = True

    inverts_inputs = True

    @classmethod
    def between(cls, exact: Site, below: Layer, above: Layer, displacement: bool) -> "GeneralLinearSite":
        return cls(exact.name, exact.group, (), exact.consumers, below, displacement)

    def __post_init__(self) -> None:
        sigma = self.producer.activation
        if sigma.inverse is None:
            raise UserError(
                f"action 'general_linear' needs an activation that is a bijection of the real line, and "
                f"'{sigma.name}' is not: use leaky_relu, asinh or identity, or action 'pseudo_inverse'"
            )

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(self.producer.names) + super().parameters

    def produced(self, params: Params) -> Tensor:
        return self.producer.augmented(params)

    def act(self, params: Params, g: Tensor, inputs: LayerInput | None = None, inverse: Tensor | None = None) -> Params:
        if inputs is None:
            raise UserError(f"site '{self.name}' acts on a batch: pass the inputs of the network to act")
        sigma, sigma_inverse = self.producer.activation, cast(Function, self.producer.activation.inverse)
        x = self.producer.augment(inputs.columns)
        x_inverse = invert_columns(x) if inputs.pseudo_inverse is None else inputs.pseudo_inverse
        v = self.producer.augmented(params)
        z = v @ x
        moved_z = sigma_inverse(self.group.apply(g, sigma(z)))
        v = v + (moved_z - z) @ x_inverse if self.displacement else moved_z @ x_inverse
        moved = super().act(params, g, inputs, inverse)
        return {**moved, **self.producer.split(v)}

    def limit(self, params: Params) -> int | None:
        return params[self.producer.weight].shape[-1] + (self.producer.bias is not None)
