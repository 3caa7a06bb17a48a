"""Bases of the algebra at a site, and the invariants that a rule reads beside them; see :mod:`equivariant`."""

from typing import NamedTuple

import torch
from torch import Tensor

from meta_teleport.equivariant.site_features import SiteFeatures, diagonal_site_features, site_features
from meta_teleport.equivariant.steepest import NUMBERS, has_steepest_point, steepest_point
from meta_teleport.learned.task_features import log_ratio
from meta_teleport.linalg.decompositions import eigh
from meta_teleport.linalg.logarithm import LogGram, log_diagonal, log_gram
from meta_teleport.params import Params
from meta_teleport.rules.rule import Observation
from meta_teleport.symmetry.site import Site
from meta_teleport.teleportation.gauges import balanced

WEIGHTS = ("incoming", "outgoing", "incoming_gradient", "outgoing_gradient")
GRAMS = ("activations", *WEIGHTS)
EQUIVARIANT = (*GRAMS, "symmetric", "skew", "identity")
BASES = (*EQUIVARIANT, "balance", "axes", "steepest")
INVARIANTS = 2 * len(GRAMS) + 5
ACTIVATION_FLOOR, DIAGONAL_FLOOR = 1e-14, 1e-3
LOG_SCALE = 10.0
STEEPEST_GAIN = 4.0


class Basis(NamedTuple):
    """At one site, a row per block: ``invariants`` (tasks, rows, :func:`invariants`), and ``matrices`` (tasks, rows,
    bases, k, k), or (tasks, rows, k, bases) for positive scalings."""

    matrices: Tensor
    invariants: Tensor


def invariants(names: tuple[str, ...]) -> int:
    """How many numbers a rule reads beside the named basis: INVARIANTS, two more with the steepest point."""
    return INVARIANTS + (NUMBERS if "steepest" in names else 0)


def basis(site: Site, index: int, observation: Observation, names: tuple[str, ...], floor: float) -> Basis:
    """The named basis at ``site``, the ``index``-th of its symmetry. What is not known (activations where the network
    is no chain of layers) gives zeros."""
    diagonal = site.group.is_diagonal
    seen = (diagonal_site_features if diagonal else site_features)(site, observation)
    grams = dict(zip(WEIGHTS, seen.grams, strict=True))  # (tasks, rows, k, k) each, of scalings (tasks, rows, k)
    h = observation.grams[index] if index < len(observation.grams) else None  # (tasks, *blocks, k, k)
    if h is not None:
        grams["activations"] = h.reshape(len(h), -1, *h.shape[-1 if diagonal else -2 :])
    blank = torch.zeros_like(grams["incoming"])
    # what is below its floor counts as it: rounding, and under scalings units that are off
    rounding = torch.finfo(blank.dtype).eps
    floors = {"activations": max(ACTIVATION_FLOOR, rounding)} if not diagonal else dict.fromkeys(GRAMS, DIAGONAL_FLOOR)
    least = {name: floors.get(name, floor) for name in GRAMS if name in names}
    logs = (_diagonal_logs if diagonal else _logs)({name: grams.get(name, blank) for name in least}, least)
    moment = _moment(seen)
    parts = {name: log.matrix for name, log in logs.items()} | _parts(moment, blank, diagonal)
    if "balance" in names:
        parts["balance"] = _towards_balance(site, observation.params, blank)
    if "axes" in names:
        parts["axes"] = blank if diagonal else _towards_axes(grams["incoming"], grams["outgoing"])
    numbers = _invariants(logs, seen.sizes, moment, diagonal)
    if "steepest" in names:
        parts["steepest"], of_steepest = _steepest(site, observation, blank)
        numbers = torch.cat([numbers, of_steepest], -1)
    matrices = torch.stack([parts[name] for name in names], -1 if diagonal else -3)  # (tasks, rows, bases, k, k)
    return Basis(matrices, numbers)


def _logs(grams: dict[str, Tensor], least: dict[str, float]) -> dict[str, LogGram]:
    return {name: log_gram(gram, least[name]) for name, gram in grams.items()}


def _diagonal_logs(grams: dict[str, Tensor], least: dict[str, float]) -> dict[str, LogGram]:
    if not grams:
        return {}
    floor = next(iter(grams.values())).new_tensor(list(least.values()))[:, None, None, None]  # (grams, 1, 1, 1)
    found = log_diagonal(torch.stack(list(grams.values())), floor)
    return {name: LogGram(matrix, matrix) for name, matrix in zip(grams, found.matrix.unbind(), strict=True)}


def _moment(seen: SiteFeatures) -> Tensor:
    """``U^T dL/dU / (|U| |dL/dU|)`` in algebra coordinates."""
    size = (seen.sizes[1] * seen.sizes[3]).clamp(min=torch.finfo(seen.product.dtype).tiny)
    return seen.product / size.reshape(size.shape + (1,) * (seen.product.ndim - 2))


def _parts(moment: Tensor, blank: Tensor, diagonal: bool) -> dict[str, Tensor]:
    if diagonal:
        return {"symmetric": moment, "skew": blank, "identity": torch.ones_like(blank)}
    eye = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device).expand_as(moment)  # (tasks, rows, k, k)
    return {"symmetric": (moment + moment.mT) / 2, "skew": (moment - moment.mT) / 2, "identity": eye}


def _steepest(site: Site, observation: Observation, blank: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation to the steepest point times STEEPEST_GAIN, and its numbers ``(tasks, rows, NUMBERS)``; zeros where
    there is none."""
    if not has_steepest_point(site):
        return blank, blank.new_zeros(*blank.shape[:2], NUMBERS)
    found = steepest_point(site, observation.params, observation.gradients)
    return STEEPEST_GAIN * found.rotation.unsqueeze(1), found.numbers.unsqueeze(1)  # a plane has one row


@torch.no_grad()
def _towards_balance(site: Site, params: Params, blank: Tensor) -> Tensor:
    """Twice the logarithm of the balanced gauge's element, in the shape of ``blank``; zero where there is none."""
    if not (site.exact and site.producers and site.consumers and site.group.has_gauges):
        return blank
    g = balanced(site, params).reshape(blank.shape).double()  # positive, so that it has a real logarithm
    if site.group.is_diagonal:
        return (2 * g.log()).to(blank.dtype)
    values, vectors = eigh(g)
    logs = torch.where(values.isnan(), 1.0, values).log()
    return ((vectors * (2 * logs).unsqueeze(-2)) @ vectors.mT).to(blank.dtype)


@torch.no_grad()
def _towards_axes(a: Tensor, b: Tensor) -> Tensor:
    """Skew matrices ``(tasks, rows, k, k)`` along which the principal axes of ``a / tr a + b / tr b`` turn into the
    coordinate axes next to them: twice the skew part of that rotation."""
    _, vectors = eigh(_unit_trace(a) + _unit_trace(b))  # (tasks, rows, k, k), axes as columns
    matched = _matched(vectors.flatten(0, -3)).view_as(vectors)
    return (matched.mT - matched).to(a.dtype)


def _unit_trace(gram: Tensor) -> Tensor:
    wide = gram.double()
    trace = wide.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    return wide / trace.clamp(min=torch.finfo(wide.dtype).tiny)


def _matched(vectors: Tensor) -> Tensor:
    """Orthonormal columns in the order and with the signs that bring them near the identity: the largest entry first,
    each row and each column once; ``(n, k, k)``."""
    free, result, index = vectors.abs(), torch.empty_like(vectors), torch.arange(len(vectors), device=vectors.device)
    for _ in range(vectors.shape[-1]):
        place = free.flatten(1).argmax(1)  # (n,)
        row, column = place // vectors.shape[-1], place % vectors.shape[-1]
        chosen = vectors[index, :, column]  # (n, k)
        result[index, :, row] = chosen * chosen[index, row].sign().unsqueeze(1)
        free[index, row], free[index, :, column] = -1, -1
    return result


def _invariants(logs: dict[str, LogGram], sizes: Tensor, moment: Tensor, diagonal: bool) -> Tensor:
    """Per row: largest and mean log eigenvalue of every Gram matrix, ratios of norms, and of the moment map the trace
    and the norms of its two parts; ``(tasks, rows, INVARIANTS)``."""
    zero = torch.zeros_like(sizes[0])
    spectra = dict.fromkeys(GRAMS, (zero, zero))
    if logs:
        eigenvalues = torch.stack([log.eigenvalues for log in logs.values()]) / LOG_SCALE  # (grams, tasks, rows, k)
        spectra |= dict(zip(logs, zip(eigenvalues.amax(-1), eigenvalues.mean(-1), strict=True), strict=True))
    numbers = [x for name in GRAMS for x in spectra[name]]
    numbers += (log_ratio(sizes[::2], sizes[1::2]) / LOG_SCALE).unbind()
    if diagonal:
        numbers += [moment.sum(-1), moment.norm(dim=-1), zero]
    else:
        symmetric, skew = (moment + moment.mT) / 2, (moment - moment.mT) / 2
        trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1)
        numbers += [trace, symmetric.flatten(2).norm(dim=-1), skew.flatten(2).norm(dim=-1)]
    return torch.stack(numbers, -1)
