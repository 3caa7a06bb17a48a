"""Estimates of the curvature along each parameter, from the weights beside it.

For a loss ``0.5 mean |y - U V x|^2`` and inputs with second moments near the identity, the second derivatives are
``U^T U`` along V, for each of its columns, and ``V V^T`` along U, for each of its rows. The estimate is the largest
eigenvalue of these Gram matrices. A parameter beside several sites has the product.
"""

import torch
from torch import Tensor

from meta_teleport.linalg.decompositions import eigvalsh
from meta_teleport.params import Params
from meta_teleport.symmetry.symmetry import Symmetry


def curvatures(params: Params, symmetry: Symmetry) -> Tensor:
    """The estimates, 1 for what no site moves; ``(tasks, parameters)``."""
    first = next(iter(params.values()))
    found = {name: first.new_ones(len(first)) for name in params}
    for site in symmetry.sites:
        readers = set(site.consumer_names)
        sides = ((set(site.parameters) - readers, site.consumed(params)), (readers, site.produced(params)))
        for names, matrix in sides:
            c = _largest_eigenvalue(matrix @ matrix.mT)
            for name in names:
                found[name] = found[name] * c
    return torch.stack(list(found.values()), 1)


def _largest_eigenvalue(gram: Tensor) -> Tensor:
    """Of matrices ``(tasks, *blocks, k, k)``, over all blocks; 1 if that is 0 or they are not finite."""
    values = eigvalsh(gram).flatten(1)
    finite = values.isfinite().all(1, keepdim=True)
    largest = torch.where(finite, values, 1.0).amax(1)
    return torch.where(largest > torch.finfo(gram.dtype).tiny, largest, 1.0)
