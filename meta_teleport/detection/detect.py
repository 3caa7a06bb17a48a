"""From a model to its symmetry: trace it, walk its graphs, read the sites off the marks, check them on numbers."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from meta_teleport.detection.check import Check, tried
from meta_teleport.detection.graphs import Graphs
from meta_teleport.detection.sites import Sites
from meta_teleport.errors import UserError
from meta_teleport.operations import (  # noqa: F401  (they register what operations mean)
    arithmetic,
    contractions,
    convolutions,
    experts,
    norms,
    pointwise,
    products,
    rearrangements,
    recurrences,
)
from meta_teleport.symmetry.requirements import is_movable, require_movable
from meta_teleport.symmetry.symmetry import Refusal, Symmetry
from meta_teleport.tracing.settings import Setting, grown, has_rates, is_settled
from meta_teleport.tracing.trace import Examples, Trace, given, trace

CLOSED = "a closed module uses"
Traced = list[tuple[Setting, Trace]]


def find_symmetries(
    model: nn.Module,
    example_inputs: Examples,
    *,
    also: Sequence[Examples] = (),
    leaves: Sequence[str] = (),
    check: bool = True,
    generator: torch.Generator | None = None,
) -> Symmetry:
    """The symmetry of a model: all sites at which a group acts without changing what the model computes, for any input.

    ``example_inputs`` are a tensor, a tuple of arguments, or a dict of keyword arguments, on which the model runs;
    ``also`` are further ones, on which it goes other ways (other tasks, other flags). It is traced on each of them in
    the mode it is in, and once more in the other mode (training or evaluation) with inputs of other sizes, where it
    takes these; a site must hold in all traces. Parameters that no trace sees bar the units that are at hand in the
    modules that hold them. Modules named in ``leaves`` are not looked into.

    The groups are GL(k) where units meet only linear maps (linear pairs, low-rank factors, and head by head queries
    with keys, values with outputs), positive scalings where they meet positively homogeneous functions (ReLU and its
    kin, scales of norms, gated products, pairs rotated by their place), signs where they meet odd functions (tanh and
    its kin), and permutations of units, those of recurrent layers among them, where GL does not contain them; none
    through dropout of any rate, whose masks they do not move. Those through BatchNorm move its running statistics
    along: such a site names buffers among its producers, and acts on the model's parameters and buffers together.
    ``refusals`` of the result say which parameters make units that no continuous group moves, and why.

    With ``check`` all sites are tried with random elements in float64, in training and in evaluation, on the inputs
    given and on random ones of other sizes; a site that moves the outputs is refused.

    Raises ``UserError`` if the model cannot move, see
    :func:`meta_teleport.symmetry.requirements.require_movable`, or if it cannot be traced, see
    :func:`meta_teleport.tracing.trace.trace`.
    """
    require_movable(model)
    leaves = (leaves,) if isinstance(leaves, str) else leaves
    examples = [given(model, example) for example in (example_inputs, *also)]
    traced: Traced = [(setting, trace(model, setting, leaves)) for setting in examples]
    settled = is_settled(model)
    others = examples if settled else [grown(model, setting) for setting in examples]
    refusals: list[Refusal] = []
    for setting, other in () if settled else zip(examples, others, strict=True):
        further, missed = _further(model, setting, other, leaves)
        traced, refusals = traced + further, refusals + missed
    closed = {id(parameter) for leaf in leaves for parameter in model.get_submodule(leaf).parameters()}
    frozen = {name: "is frozen" for name, parameter in model.named_parameters() if not parameter.requires_grad}
    frozen |= {
        name: f"is {str(p.dtype).removeprefix('torch.')}" for name, p in model.named_parameters() if not is_movable(p)
    }
    frozen |= {name: CLOSED for name, parameter in model.named_parameters() if id(parameter) in closed}
    graphs = Graphs(model, [graph for _, graph in traced], frozen)
    movable = {name for name, p in model.named_parameters() if is_movable(p) and frozen.get(name) != CLOSED}
    if unseen := [name for name in graphs.unseen() if name in movable]:
        graphs = Graphs(model, [trace(model, setting, leaves, scoped=True) for setting, _ in traced], frozen)
        graphs.bar_unseen(unseen)
    found = Sites(graphs.units, graphs.shapes, graphs.buffers)
    sites, refusals = found.sites(), found.refusals() + refusals
    if check:
        generator = generator or torch.Generator().manual_seed(0)
        false = Check(model, tried(examples, others), sites).false_sites(sites, generator)
        refusals += [
            Refusal(sites[i].parameters, f"'{sites[i].name}' moves the outputs by {drift:.1e}: not a symmetry")
            for i, drift in false.items()
        ]
        sites = [site for i, site in enumerate(sites) if i not in false]
    return Symmetry(tuple(sites), refusals=tuple(refusals))


def _further(model: nn.Module, setting: Setting, other: Setting, leaves: Sequence[str]) -> tuple[Traced, list[Refusal]]:
    """The graph in the other mode, with inputs of other sizes, and in training with rates raised: all at once, or what
    of it can be traced; and what cannot."""
    other = replace(other, training=not setting.training)
    traced: Traced = []
    notes: list[Refusal] = []
    if setting.training and has_rates(model):
        with suppress(UserError):
            raised = replace(setting, raised=True)
            traced.append((raised, trace(model, raised, leaves)))
    for attempt in (replace(other, raised=True), other):
        with suppress(UserError):
            return [*traced, (attempt, trace(model, attempt, leaves))], []
    for attempt in (replace(setting, training=other.training), replace(other, training=setting.training)):
        try:
            traced.append((attempt, trace(model, attempt, leaves)))
        except UserError as error:
            notes.append(Refusal(("the model",), f"is not traced {attempt}, only tried on numbers: {error}"))
    return traced, notes
