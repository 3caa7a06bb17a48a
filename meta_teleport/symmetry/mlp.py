"""The symmetry of an MLP, by the name of an action."""

from meta_teleport.errors import UserError
from meta_teleport.models import MLP
from meta_teleport.symmetry.general_linear import GeneralLinearSite
from meta_teleport.symmetry.groups import GL, GROUPS, FirstOrder, Group, Orthogonal
from meta_teleport.symmetry.pseudo_inverse import PseudoInverseSite
from meta_teleport.symmetry.site import DataDependentSite, Layer, Site
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.symmetry.views import View

MATRICES: dict[str, type[Group]] = {"gl": GL, "orthogonal": Orthogonal, "first_order": FirstOrder}
THROUGH = {name: group for name, group in GROUPS.items() if name not in MATRICES}  # they act around activations
ON_A_BATCH: dict[str, type[DataDependentSite]] = {
    "general_linear": GeneralLinearSite,
    "pseudo_inverse": PseudoInverseSite,
}


def actions() -> tuple[str, ...]:
    """The names of all actions."""
    return (*ON_A_BATCH, "linear", *THROUGH)


def mlp_symmetry(model: MLP, action: str = "general_linear", group: str = "gl", displacement: bool = True) -> Symmetry:
    """The symmetry of an MLP: one site per hidden layer.

    ``action``: general_linear (the paper's (a)), pseudo_inverse (its (b)), linear (exact, identity activation), or a
    group that acts around activations: scaling (exact, positively homogeneous ones), permutation (exact, all).
    ``group``: gl, orthogonal or first_order (for the first three). ``displacement`` selects the displacement form of
    (a) and (b).

    Raises ``UserError`` for names that do not exist and for activations that do not have the symmetry.
    """
    if action not in actions():
        raise UserError(f"unknown action '{action}': choose one of {', '.join(actions())}")
    if group not in MATRICES:
        raise UserError(f"unknown group '{group}': choose one of {', '.join(MATRICES)}")
    sigma = model.activation
    if action == "linear" and not MATRICES[group].passes(sigma):
        raise UserError(f"action 'linear' needs activation 'identity', not '{sigma.name}'")
    if action in THROUGH and not THROUGH[action].passes(sigma):
        raise UserError(f"action '{action}' needs {THROUGH[action].needs}, and '{sigma.name}' is not")
    acting = THROUGH.get(action, MATRICES[group])
    biases = [layer.bias is not None for layer in model.layers]
    layers = [Layer(f"layers.{i}.weight", f"layers.{i}.bias" if b else None, sigma) for i, b in enumerate(biases)]
    w = model.widths
    sites = tuple(
        _site(action, acting, displacement, widths, below, above)
        for widths, below, above in zip(zip(w, w[1:], w[2:], strict=False), layers[:-1], layers[1:], strict=True)
    )
    return Symmetry(sites, tuple(layers[:-1]), keeps_loss=acting.is_exact)


def _site(
    action: str, group: type[Group], displacement: bool, widths: tuple[int, int, int], below: Layer, above: Layer
) -> Site:
    name, (d, k, m) = below.weight.removesuffix(".weight"), widths
    produced = (View.along(below.weight, (k, d), 0),) + ((View.along(below.bias, (k,), 0),) if below.bias else ())
    consumed = (View.along(above.weight, (m, k), 1),)
    if action in ON_A_BATCH:
        return ON_A_BATCH[action].between(Site(name, group(k), produced, consumed), below, above, displacement)
    return Site(name, group(k), produced, consumed)
