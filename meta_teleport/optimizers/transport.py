"""Optimizer state along the group action.

A teleport writes the same function in other weights: w' = g.w and L(g.w) = L(w) for every w. What an optimizer
remembers was measured at the old weights, and each memory moves by the law of what it is made of:

    made of                                producer V      consumer U
    weights, or differences of them   s    g s             s g^-1            the action is linear
    gradients                         m    g^-T m          m g^T             the dual action
    squared gradients                 v    (g^-T)^2 v      v (g^T)^2         entries squared
    squared differences of weights    a    g^2 a           a (g^-1)^2        entries squared
    bounds on gradients               b    |g^-T| b        b |g^T|           absolute values of entries

The second line is the chain rule: differentiating L(g.w) = L(w) by V gives g^T (dL/dV)(g.w) = (dL/dV)(w). Sums of
gradients with fixed weights (momenta) move alike, so after a teleport a momentum is what it would be had all its
gradients been taken at the moved weights. The step w' - lr m' that follows is, mapped back by g^-1,

    V - lr (g^T g)^-1 m_V,     U - lr m_U (g^T g):

the momentum step preconditioned by the metric g^T g. Inner products of a step with a gradient do not change, which
keeps the curvature pairs of L-BFGS valid: s'.y' = s.y.

The third line is exact for diagonal groups. Under GL a new gradient is a combination of old ones,
G'_il = sum_j (g^-T)_ij G_jl, and the mean of its square is the line above where the G_jl of one column l are
uncorrelated; what correlates is left out. The fourth is the same for steps in place of gradients (Adadelta, whose steps
do not change under diagonal groups but for its eps). The fifth, too, is exact for diagonal groups; under GL it is the
least bound that follows from the old one, too large where gradients cancel, until it has decayed (Adamax).

Second moments in factors (Adafactor, Shampoo, SOAP): see the module ``preconditioners``. A weight that is averaged or
looked ahead at (z of the schedule-free optimizers) is a weight.

No law, and therefore left as they are: step counts; RMSprop's momentum buffer, which sums G / sqrt(v): that does not
change under diagonal groups, and has no law under GL. Weight decay that is added to the gradient (SGD, Adam) puts
multiples of the weights, which move otherwise, into the moments: transport is exact without it. Rprop (its step sizes
belong to single coordinates) and SparseAdam have no laws here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import ASGD, LBFGS, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from meta_teleport.errors import UserError
from meta_teleport.optimizers.preconditioners import moved_jointly
from meta_teleport.params import Params, Writes, flatten, unflatten
from meta_teleport.symmetry.site import Site
from meta_teleport.symmetry.symmetry import Symmetry

Law = Callable[[Site, Params, Tensor], Params]


def as_weights(site: Site, vectors: Params, g: Tensor) -> Params:
    """The law of weights."""
    return site.act(vectors, g)


def as_steps(site: Site, vectors: Params, g: Tensor) -> Params:
    """The law of differences of weights."""
    return site.linear.act(vectors, g)


def as_gradients(site: Site, vectors: Params, g: Tensor) -> Params:
    """The law of gradients, and of sums of gradients."""
    return site.transport(vectors, g)


def as_squares(site: Site, vectors: Params, g: Tensor) -> Params:
    """The law of sums of squared gradients."""
    return site.transport_squares(vectors, g)


def as_squared_weights(site: Site, vectors: Params, g: Tensor) -> Params:
    """The law of sums of squared differences of weights."""
    group = site.group
    return site.linear.act(vectors, group.squared(g), inverse=group.squared(group.inverse(g)))


def as_bounds(site: Site, vectors: Params, g: Tensor) -> Params:
    """The law of bounds on the absolute values of gradients."""
    dual = site.group.dual(g)
    return site.linear.act(vectors, dual.abs(), inverse=site.group.inverse(dual).abs())


_ADAM: dict[str, Law] = {"exp_avg": as_gradients, "exp_avg_sq": as_squares, "max_exp_avg_sq": as_squares}

LAWS: dict[type[Optimizer], dict[str, Law]] = {
    SGD: {"momentum_buffer": as_gradients},
    Adagrad: {"sum": as_squares},
    RMSprop: {"square_avg": as_squares, "grad_avg": as_gradients},
    Adam: _ADAM,
    AdamW: _ADAM,
    NAdam: _ADAM,
    RAdam: _ADAM,
    Adamax: {"exp_avg": as_gradients, "exp_inf": as_bounds},
    Adadelta: {"square_avg": as_squares, "acc_delta": as_squared_weights},
    ASGD: {"ax": as_weights},
    LBFGS: {"d": as_steps, "prev_flat_grad": as_gradients, "old_stps": as_steps, "old_dirs": as_gradients},
}
"""Per optimizer class (subclasses included) the law of every entry of its state; add a line for a class of your own."""
if hasattr(torch.optim, "Muon"):
    LAWS[torch.optim.Muon] = {"momentum_buffer": as_gradients}

_MUON: dict[str, Law] = {"momentum_buffer": as_gradients, "exp_avg": as_gradients, "exp_avg_sq": as_squares}
_SCHEDULE_FREE: dict[str, Law] = {"z": as_weights, "exp_avg_sq": as_squares}
_ADAFACTOR: dict[str, Law] = {
    "exp_avg": as_gradients,
    "exp_avg_sq": as_squares,
    "exp_avg_sq_hat": as_squares,
    "variance": as_squares,
}

NAMED: dict[str, dict[str, Law]] = {
    "Lion": {"exp_avg": as_gradients},
    **dict.fromkeys(("Adafactor", "AdaFactor"), _ADAFACTOR),
    **dict.fromkeys(("Muon", "SingleDeviceMuon", "MuonWithAuxAdam", "SingleDeviceMuonWithAuxAdam"), _MUON),
    **dict.fromkeys(("SGDScheduleFree", "SGDScheduleFreeClosure", "ScheduleFreeSGD"), _SCHEDULE_FREE),
    **dict.fromkeys(("AdamWScheduleFree", "AdamWScheduleFreeClosure", "ScheduleFreeAdamW"), _SCHEDULE_FREE),
    **dict.fromkeys(("RAdamScheduleFree", "RAdamScheduleFreeClosure", "ScheduleFreeRAdam"), _SCHEDULE_FREE),
    "SOAP": {"exp_avg": as_gradients},
    "Shampoo": {},
}
"""The same for optimizers of other libraries, by the name of their class (schedulefree, pytorch_optimizer,
transformers, Muon in one file). Where a state has an entry that is neither here nor in the module ``preconditioners``,
the teleport is refused."""


def laws_of(optimizer: Optimizer) -> dict[str, Law]:
    """The laws of the optimizer's state. Raises ``UserError`` for a class that has none."""
    for kind, laws in LAWS.items():
        if isinstance(optimizer, kind):
            return laws
    found = _name(optimizer)
    if found == "Shampoo" and any(group.get("momentum", 0) for group in optimizer.param_groups):
        raise UserError("Shampoo with momentum keeps preconditioned gradients, which have no law: use momentum=0")
    if found:
        return NAMED[found]
    name, known = type(optimizer).__name__, ", ".join(dict.fromkeys([*(kind.__name__ for kind in LAWS), *NAMED]))
    raise UserError(f"how the state of {name} moves is not known: use state='reset' or 'keep', or one of {known}")


def move(law: Law, symmetry: Symmetry, vectors: Params, elements: tuple[Tensor, ...]) -> Params:
    """``vectors``, tensors ``(*tasks, *shape)`` named like the parameters, moved by one element per site.

    Parameters that have no vector are left out.
    """
    for site, g in zip(symmetry.sites, elements, strict=True):
        site = site.among(vectors)
        if site.parameters:
            vectors = law(site, vectors, g)
    return vectors


def moved_gradients(names: Mapping[Tensor, str], symmetry: Symmetry, elements: tuple[Tensor, ...]) -> Writes:
    """What to write into the ``.grad`` of the named parameters when they move: pairs of a tensor and its new value.

    Raises ``UserError`` for a sparse gradient.
    """
    require_dense(names, symmetry)
    gradients = {name: p.grad for p, name in names.items() if p.grad is not None}
    return _moved(as_gradients, symmetry, gradients, elements)


def require_dense(names: Mapping[Tensor, str], symmetry: Symmetry) -> None:
    """Raises ``UserError`` where a parameter that a site moves has a sparse gradient."""
    sparse = {name for p, name in names.items() if p.grad is not None and p.grad.layout != torch.strided}
    for name in (name for site in symmetry.sites for name in site.parameters if name in sparse):
        raise UserError(f"the gradient of '{name}' is sparse and cannot move: use sparse=False")


def moved_state(
    optimizer: Optimizer, names: Mapping[Tensor, str], symmetry: Symmetry, elements: tuple[Tensor, ...]
) -> Writes:
    """What to write into the optimizer's state of the named parameters when they move: pairs of a tensor and its new
    value.

    Raises ``UserError`` for an optimizer whose state has no law.
    """
    laws = laws_of(optimizer)
    if isinstance(optimizer, LBFGS):
        return _moved_history(optimizer, laws, names, symmetry, elements)
    writes: Writes = []
    for key, law in laws.items():
        entries = {names[p]: s[key] for p, s in optimizer.state.items() if p in names and s.get(key) is not None}
        writes += _moved(law, symmetry, entries, elements)
    if _name(optimizer) is None:
        return writes

    def squares(name: str, vector: Tensor) -> Tensor:
        return _moved(as_squares, symmetry, {name: vector}, elements)[0][1]

    return writes + moved_jointly(optimizer, laws, names, symmetry, elements, squares)


def reset_state(optimizer: Optimizer, names: Mapping[Tensor, str], symmetry: Symmetry | None = None) -> None:
    """Makes the state of every named parameter that a site moves (without a symmetry: of all) what it was before the
    first step.

    Step counts too: Adam corrects the bias of means that began empty by them. The history of L-BFGS is one for all
    parameters and goes whole.
    """
    touched = set(names.values()) if symmetry is None else {n for site in symmetry.sites for n in site.parameters}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p not in optimizer.state or not (names.get(p) in touched or isinstance(optimizer, LBFGS)):
                continue
            if isinstance(optimizer, Adagrad):
                optimizer.state[p]["step"].zero_()
                optimizer.state[p]["sum"].fill_(optimizer.defaults["initial_accumulator_value"])
            else:
                del optimizer.state[p]


def _name(optimizer: Optimizer) -> str | None:
    """Under what name the optimizer has laws, if it is not torch's."""
    if isinstance(optimizer, tuple(LAWS)):
        return None
    return next((cls.__name__ for cls in type(optimizer).__mro__ if cls.__name__ in NAMED), None)


def _moved(law: Law, symmetry: Symmetry, tensors: dict[str, Tensor], elements: tuple[Tensor, ...]) -> Writes:
    touched = {name for site in symmetry.sites for name in site.parameters}
    vectors = {name: t.detach().to(elements[0]) for name, t in tensors.items() if name in touched}
    return [(tensors[name], value) for name, value in move(law, symmetry, vectors, elements).items()]


def _moved_history(
    optimizer: LBFGS,
    laws: dict[str, Law],
    names: Mapping[Tensor, str],
    symmetry: Symmetry,
    elements: tuple[Tensor, ...],
) -> Writes:
    """L-BFGS keeps flat vectors over all parameters, and lists of them, in the state of the first one."""
    parameters = optimizer.param_groups[0]["params"]
    state: dict[str, Any] = optimizer.state.get(parameters[0], {})
    like = {names[p]: p.detach().unsqueeze(0) for p in parameters}
    writes: Writes = []
    moved: dict[str, Tensor] = {}
    for key, law in laws.items():
        entry = state.get(key)
        vectors = entry if isinstance(entry, list) else [] if entry is None else [entry]
        if vectors:
            stacked = unflatten(torch.stack(vectors).to(elements[0]), like)
            moved[key] = flatten(move(law, symmetry, stacked, elements))
            writes += zip(vectors, moved[key], strict=True)
    if "old_dirs" in moved:  # the scale of the first Hessian approximation, s.y / y.y for the newest pair
        s, y = moved["old_stps"][-1], moved["old_dirs"][-1]
        writes.append((state["H_diag"], s.dot(y) / y.dot(y)))
    return writes
