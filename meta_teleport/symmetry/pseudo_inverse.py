"""The paper's data-dependent action (b): GL through any activation, by a pseudo-inverse.

For consecutive weights V (k x d) then U (m x k) and layer input X (d x n):

    V' = g V
    U' = U sigma(V X) sigma(g V X)^+                                  plain form
    U' = U + U [sigma(V X) - sigma(g V X)] sigma(g V X)^+             displacement form

The loss is unchanged on the batch X if n <= k and sigma(g V X) has full column rank (n <= k + 1 with a bias on the
consumer, whose hidden activations get a row of ones). The plain form is a group action on the batch; the
displacement form leaves the part of U that the batch does not see, at the price of the composition law.
"""

from dataclasses import dataclass

from torch import Tensor

from meta_teleport.errors import UserError
from meta_teleport.linalg.pseudo_inverse import invert_columns
from meta_teleport.params import Params
from meta_teleport.symmetry.site import DataDependentSite, Layer, LayerInput, Site


@dataclass(frozen=True)
class PseudoInverseSite(DataDependentSite):
    """Action (b) between ``producer`` and ``consumer``."""

    producer: Layer
    consumer: Layer
    displacement: bool = True

    @classmethod
    def between(cls, exact: Site, below: Layer, above: Layer, displacement: bool) -> "PseudoInverseSite":
        return cls(exact.name, exact.group, exact.producers, (), below, above, displacement)

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(self.producer.names) + tuple(self.consumer.names)

    @property
    def consumer_names(self) -> tuple[str, ...]:
        return (self.consumer.weight,)

    def consumed(self, params: Params) -> Tensor:
        return params[self.consumer.weight].mT

    def act(self, params: Params, g: Tensor, inputs: LayerInput | None = None, inverse: Tensor | None = None) -> Params:
        if inputs is None:
            raise UserError(f"site '{self.name}' acts on a batch: pass the inputs of the network to act")
        moved = super().act(params, g, inputs, inverse)
        h = self.consumer.augment(self.producer.forward(params, inputs.columns))
        moved_h = self.consumer.augment(self.producer.forward(moved, inputs.columns))
        u, inverse = self.consumer.augmented(params), invert_columns(moved_h)
        u = u + u @ (h - moved_h) @ inverse if self.displacement else u @ h @ inverse
        return {**moved, **self.consumer.split(u)}

    def limit(self, params: Params) -> int | None:
        return params[self.consumer.weight].shape[-1] + (self.consumer.bias is not None)
