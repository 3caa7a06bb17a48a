"""Sharpness and curvature of many trained copies, on the same images and along the same directions for all of them.

    phi(w) = mean of L(w + t d)      over lengths t, and one unit direction d per batch of images
    psi(w) = mean of kappa_M(w)      over one algebra element M per batch, on all pairs of layers at once

A measure gives one number per copy for every batch. The batches stay apart until the end, so that two halves of them
say how far the mean can be trusted.
"""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from experiments.lab.progress import Stopped, kept_tensors, require_same
from meta_teleport.cli.terminal import counting_bar, stopping
from meta_teleport.errors import UserError
from meta_teleport.linalg.pseudo_inverse import invert_columns
from meta_teleport.optimizers.ensemble import Ensemble
from meta_teleport.params import Params, detach
from meta_teleport.runs.checkpoint import save_tensors
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks.images import Images
from meta_teleport.teleportation.curvature import curvature_of, kappa, unit_algebra
from meta_teleport.teleportation.objectives import Sharpness

FAR_SCALES = (1.0, 2.0, 3.0, 4.0, 5.0)
"""Distances beyond those of the paper's searches."""
CHUNK = 20
"""Ensemble whose curvature is computed at a time."""

Measure = Callable[[int, Tensor, Tensor], Tensor]
"""From the number of a batch, its inputs ``(n, ...)`` and labels ``(n,)`` to one number per copy, ``(copies,)``."""
Draw = Callable[[Symmetry, Tensor, torch.Generator], list[Tensor]]
"""From a symmetry, a parameter ``(copies, ...)`` and a generator to algebra coordinates, one tensor per site."""


def loss(copies: Ensemble) -> Measure:
    """The loss itself, to tell what a measure adds to it."""
    params = detach(copies.params)

    def measure(number: int, x: Tensor, y: Tensor) -> Tensor:
        return copies.losses(x[None], y[None], params, copies.buffers)

    return measure


def sharpness(copies: Ensemble, scales: Sequence[float], nonnegative: bool, fresh: bool = False) -> Measure:
    """The mean loss at the distances ``scales`` along one direction per batch, or a ``fresh`` one for every distance.
    Published: fresh ones from the non-negative orthant."""
    params = detach(copies.params)
    groups = [(t,) for t in scales] if fresh else [tuple(scales)]

    def measure(number: int, x: Tensor, y: Tensor) -> Tensor:
        values = [
            Sharpness(group, directions=1, seed=number * len(groups) + i, nonnegative=nonnegative)(
                lambda moved: copies.losses(x[None], y[None], moved, copies.buffers), params
            )
            for i, group in enumerate(groups)
        ]
        return torch.stack(values).mean(0)

    return measure


def both_ways(scales: Sequence[float]) -> tuple[float, ...]:
    """Forth and back along each direction, so that the slope of the loss drops out of the mean."""
    return (*scales, *(-t for t in scales))


def curvature(copies: Ensemble, symmetry: Symmetry, draw: Draw) -> Measure:
    """The curvature of the orbit along one element per batch."""
    params = detach(copies.params)

    def measure(number: int, x: Tensor, y: Tensor) -> Tensor:
        inputs, values = symmetry.prepare(x), []
        for start in range(0, copies.count, CHUNK):
            part: Params = {name: p[start : start + CHUNK] for name, p in params.items()}
            algebra = draw(symmetry, next(iter(part.values())), torch.Generator().manual_seed(number))
            values.append(kappa(symmetry, algebra, inputs, part).detach())
        return torch.cat(values)

    return measure


def published_curvature(copies: Ensemble, symmetry: Symmetry) -> Measure:
    """As in the published code: action (a) on all pairs of layers of an MLP without biases, positive elements, and in
    w'' the terms of each pair alone, without those where two pairs meet.

    With h the input of a pair V, U, z = V h, s = sigma(z) and products and quotients in brackets entry by entry, the
    pair adds [M s / sigma'] h^+ to V', [M^2 s / sigma'] h^+ to V'', -U M to U' and U M^2 to U''. As sigma is
    homogeneous, 1 / sigma' = z / s.
    """
    params = detach(copies.params)

    def measure(number: int, x: Tensor, y: Tensor) -> Tensor:
        velocity = {name: torch.zeros_like(p) for name, p in params.items()}
        acceleration = {name: torch.zeros_like(p) for name, p in params.items()}
        algebra = positive(symmetry, next(iter(params.values())), torch.Generator().manual_seed(number))
        h = x.mT
        for (below, above), layer, m in zip(pairwise(params), symmetry.layers, algebra, strict=True):
            z, s, inverse = params[below] @ h, layer.forward(params, h), invert_columns(h)
            steep = torch.where(s == 0, 1.0, z / s)
            velocity[below] += (m @ s * steep) @ inverse
            acceleration[below] += (m @ m @ s * steep) @ inverse
            velocity[above] -= params[above] @ m
            acceleration[above] += params[above] @ m @ m
            h = s
        return curvature_of(velocity, acceleration)

    return measure


def gaussian(symmetry: Symmetry, like: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Uniform on the sphere of norm 1 over all sites together."""
    return unit_algebra(symmetry, None, like, generator)


def positive(symmetry: Symmetry, like: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The published elements: entries from U(0, 1), of norm 1 at every site."""
    drawn = [torch.rand(site.group.algebra_shape, generator=generator, dtype=torch.float64) for site in symmetry.sites]
    return [(m / m.norm()).to(like).expand(len(like), *m.shape) for m in drawn]


def measured(
    measures: dict[str, tuple[Measure, int]], images: Images, size: int, keep: Path, label: str
) -> tuple[dict[str, Tensor], float]:
    """Every measure on its number of batches of ``size`` training images, the first ones and at most all there are:
    ``(batches, copies)`` each; and the seconds that took.

    What is finished is kept in the file ``keep``, and Ctrl-C stops after the measure under way.

    Raises ``Stopped`` then, and ``UserError`` where that file belongs to other settings.
    """
    inputs, labels = images.x_train.split(size), images.y_train.split(size)
    full = len(images.x_train) // size
    if not full:
        raise UserError(f"{images.name}: {len(images.x_train)} training images do not fill a batch of {size}")
    counts = {name: min(count, full) for name, (_, count) in measures.items()}
    done, seconds = _kept(keep, size, counts)
    with stopping() as stop, counting_bar(sum(counts.values())) as show:
        shown = 0
        for name, (measure, _) in measures.items():
            if name not in done:
                rows, began = [], time.perf_counter()
                for number in range(counts[name]):
                    with torch.no_grad():
                        rows.append(measure(number, inputs[number], labels[number]))
                    show(shown + number, f"{label} {name}" + " (stopping)" * stop())
                done[name] = torch.stack(rows).cpu()
                seconds += time.perf_counter() - began
                keep.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(keep, done, {"size": size, "seconds": seconds})
                if stop():
                    raise Stopped(f"{label}: stopped after {name}; the same command goes on from there")
            shown += counts[name]
    return {name: done[name] for name in measures}, seconds


def _kept(keep: Path, size: int, counts: dict[str, int]) -> tuple[dict[str, Tensor], float]:
    """What is finished, and the seconds that it took."""
    found = kept_tensors(keep, {"size": size})
    if found is None:
        return {}, 0.0
    done, meta = found
    lengths = {name: len(rows) for name, rows in done.items()}
    require_same(keep, lengths, {name: counts.get(name, length) for name, length in lengths.items()})
    return done, float(meta["seconds"])
