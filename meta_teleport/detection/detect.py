"""From a model to its symmetry: trace it, walk its graph, read the sites off the marks, check them on numbers."""

from collections.abc import Sequence

import torch
from torch import nn

from meta_teleport.detection import (  # noqa: F401  (they register what operations mean)
    arithmetic,
    contractions,
    norms,
    operations,
    products,
    rearrangements,
)
from meta_teleport.detection.check import Check
from meta_teleport.detection.sites import Sites
from meta_teleport.detection.trace import Examples, arguments, trace
from meta_teleport.detection.walk import Walk
from meta_teleport.symmetry.symmetry import Refusal, Symmetry


def find_symmetries(
    model: nn.Module,
    example_inputs: Examples,
    *,
    leaves: Sequence[str] = (),
    check: bool = True,
    generator: torch.Generator | None = None,
) -> Symmetry:
    """The symmetry of a model: all sites at which a group acts without changing what the model computes, for any input.

    ``example_inputs`` are a tensor, a tuple of arguments, or a dict of keyword arguments, on which the model runs. The
    model is traced in the mode it is in. Modules named in ``leaves`` are not looked into. The groups are GL(k) where
    units meet only linear maps (linear pairs, low-rank factors, and head by head queries with keys, values with
    outputs), positive scalings where they meet positively homogeneous functions (ReLU and its kin, scales of norms,
    gated products), and permutations of units where GL does not contain them; no permutations through dropout, whose
    masks they do not move. Those through BatchNorm move its running statistics along: such a site names buffers among
    its producers, and acts on the model's parameters and buffers together. ``refusals`` of the result say which
    parameters make units that no continuous group moves, and why.

    With ``check`` all sites are tried with random elements in float64, in training and in evaluation; a site that moves
    the outputs is refused.

    Raises ``UserError``: see :func:`meta_teleport.detection.trace.trace`.
    """
    traced = trace(model, example_inputs, leaves)
    shapes = {name: tensor.shape for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    buffers = [name for name, _ in model.named_buffers()]
    frozen = {name: "is frozen" for name, parameter in model.named_parameters() if not parameter.requires_grad}
    inside = {id(parameter) for leaf in leaves for parameter in model.get_submodule(leaf).parameters()}
    frozen |= {name: "a closed module uses" for name, p in model.named_parameters() if id(p) in inside}
    found = Sites(Walk(traced, frozen).run(), shapes, buffers)
    sites, refusals = found.sites(), found.refusals()
    if check:
        generator = generator or torch.Generator().manual_seed(0)
        false = Check(model, *arguments(example_inputs), sites).false_sites(sites, generator)
        refusals += [
            Refusal(sites[i].parameters, f"'{sites[i].name}' moves the outputs by {drift:.1e}: not a symmetry")
            for i, drift in false.items()
        ]
        sites = [site for i, site in enumerate(sites) if i not in false]
    return Symmetry(tuple(sites), refusals=tuple(refusals))
