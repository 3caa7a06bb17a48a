"""All groups, by the names under which sites and actions ask for them."""

from meta_teleport.symmetry.diagonal_groups import PositiveScaling
from meta_teleport.symmetry.group import Group
from meta_teleport.symmetry.matrix_groups import GL, Orthogonal
from meta_teleport.symmetry.matrix_groups import FirstOrder as FirstOrder
from meta_teleport.symmetry.permutations import Permutation
from meta_teleport.symmetry.sign_flips import SignFlips

GROUPS: dict[str, type[Group]] = {
    "gl": GL,
    "orthogonal": Orthogonal,
    "scaling": PositiveScaling,
    "permutation": Permutation,
    "sign_flips": SignFlips,
}
